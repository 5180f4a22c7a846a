"""Errors that a user can act on. The command line prints them as one line and exits with 1."""

from baize_engine.printable import brief


class BaizeError(Exception):
    """Base of every error whose message is meant for the user: what was found, what was wanted, and where."""


class CheckpointError(BaizeError, ValueError):
    """A file of a checkpoint is not what it claims to be. The message names the file and, where known, the tensor."""


class MismatchError(BaizeError, ValueError):
    """Base and diff (or tuned) do not belong together."""


class ConfigError(BaizeError, ValueError):
    """A config.json asks for a model that this engine would not run correctly."""


class OutputError(BaizeError, OSError):
    """The output folder cannot take the result: not empty, no space, not writable. Raised with (errno, message)."""

    def __str__(self) -> str:
        return self.strerror or super().__str__()  # without the "[Errno 39]" that OSError puts in front


class BackendError(BaizeError, RuntimeError):
    """A requested backend or device cannot run here. The message gives the reason."""


class RequestError(BaizeError, ValueError):
    """A prompt or sampling parameter that cannot be served, named by index or field."""


class ValueRefused(RequestError):
    """A RequestError of a value: `before`, the value in brief, `after`, in Python's words.

    Who has the value from another language can say it in that one's.
    """

    def __init__(self, before: str, value: object, after: str) -> None:
        super().__init__(f"{before} {brief(value)}{after}")
        self.before, self.value, self.after = before, value, after


class BaizeWarning(UserWarning):
    """What a user should know of a call that was served all the same. The command line prints it as a line on stderr."""
