"""When a sample ends: stop token ids, and stop strings found in text that arrives in pieces. Knows no model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from baize_engine.generation.params import SamplingParams


def stop_token_ids(params: SamplingParams, eos_token_ids: Iterable[int]) -> frozenset[int]:
    """The ids that end a sample: the model's own, unless ignore_eos, and the request's."""
    own = () if params.ignore_eos else tuple(eos_token_ids)
    return frozenset((*own, *params.stop_token_ids))


class StopScanner:
    """Passes text through until a stop string is complete, holding back what could still become one.

    The string completed first ends the text (of two completed by the same character, the longer one), so that the result
    does not depend on how the text is cut into pieces. `matched` is that string, or None.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched: str | None = None

    def push(self, piece: str, ends: bool = True) -> str:
        """Adds a piece. Returns the text that is now certain; after a match the text before the stop string, and then "".

        ends: whether a stop string may end the text in this piece; if not, one that is completed here is plain text.
        """
        if self.matched is not None:
            return ""
        text = self._held + piece
        found = []
        for stop in self._stops if ends else ():
            place = text.find(stop, max(0, len(self._held) - len(stop) + 1))  # only where this piece completes it
            if place >= 0:
                found.append((place + len(stop), -len(stop), stop))
        if found:
            end, _, self.matched = min(found)
            self._held = ""
            return text[: end - len(self.matched)]
        hold = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def flush(self) -> str:
        """The text held back, for a sample that ended for another reason."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest suffix of `text` that is a proper prefix of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
