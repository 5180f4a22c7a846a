"""A progress bar over samples: done, tokens a second, time left. Silent without a terminal."""

from __future__ import annotations

import time

from baize_engine.progress import bar


class Progress:
    """A context manager; `token` is called for each generated token."""

    def __init__(self, samples: int, shown: bool) -> None:
        self._bar = bar(shown, total=samples, desc="generate", unit="sample")
        self._tokens, self._begin = 0, time.perf_counter()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def token(self, last: bool) -> None:
        """One more token, the last of its sample or not."""
        self._tokens += 1
        if self._bar is not None:
            rate = self._tokens / (time.perf_counter() - self._begin)
            self._bar.set_postfix_str(f"{self._tokens} tokens, {rate:.1f} tok/s", refresh=False)
            self._bar.update(int(last))
