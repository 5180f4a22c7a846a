"""The errors and warnings of the package. The command line prints an error as one line and exits with 1."""

from baize_engine.printable import brief


class BaizeError(Exception):
    """Base of every error meant for the user. The message says what was found, what was wanted, and where."""


class CheckpointError(BaizeError, ValueError):
    """A checkpoint file is not what it claims to be. The message names the file and, where known, the tensor."""


class MismatchError(BaizeError, ValueError):
    """Base and diff (or finetuned model) do not belong together."""


class ConfigError(BaizeError, ValueError):
    """A config.json describes a model that this engine cannot run correctly."""


class OutputError(BaizeError, OSError):
    """The output folder cannot take the result: not empty, no space, not writable. Arguments: (errno, message)."""

    def __str__(self) -> str:
        return self.strerror or super().__str__()  # without OSError's "[Errno 39]" prefix


class BackendError(BaizeError, RuntimeError):
    """The requested backend or device cannot run here. The message gives the reason."""


class DistributedError(BaizeError, RuntimeError):
    """The ranks of a run cannot work together: one ended or differs from the others. The message names the rank and the
    reason."""


class RequestError(BaizeError, ValueError):
    """A prompt or parameter cannot be served. The message names it by index or field."""


class DataError(BaizeError, ValueError):
    """Data of an evaluation are missing or damaged. The message names the file, and the line or where to get it."""


class ValueRefused(RequestError):
    """A RequestError about one value. The message is `before`, the shortened repr of `value`, then `after`.

    The three are attributes too, so that a caller who read the value from JSON can show it as JSON.
    """

    def __init__(self, before: str, value: object, after: str) -> None:
        super().__init__(f"{before} {brief(value)}{after}")
        self.before, self.value, self.after = before, value, after


def error_chain(error: BaseException) -> str:
    """The error's message, after the messages of the failures during whose clean-up it was raised: they are the cause."""
    messages: list[str] = []
    step: BaseException | None = error
    while step is not None:
        if isinstance(step, BaizeError):
            messages.insert(0, str(step))
        hidden = step.__suppress_context__ and step.__cause__ is None  # raised "from None"
        step = None if hidden else step.__context__
    return "; then ".join(messages)


class BaizeWarning(UserWarning):
    """Something the user should know beside what a call returns or raises. The command line prints it on stderr."""
