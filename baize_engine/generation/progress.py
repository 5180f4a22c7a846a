"""A progress bar over samples: done, tokens a second, time left. Silent without a terminal."""

from __future__ import annotations

import time

from tqdm import tqdm


class Progress:
    """A context manager; `token` is called for each generated token."""

    def __init__(self, samples: int, shown: bool) -> None:
        # disable=None: tqdm hides itself where stderr is no terminal, so that logs stay clean
        self._bar = tqdm(total=samples, desc="generate", unit="sample", disable=None if shown else True)
        self._tokens, self._begin = 0, time.perf_counter()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def token(self, last: bool) -> None:
        """One more token, the last of its sample or not."""
        self._tokens += 1
        if not self._bar.disable:
            rate = self._tokens / (time.perf_counter() - self._begin)
            self._bar.set_postfix_str(f"{self._tokens} tokens, {rate:.1f} tok/s", refresh=False)
            self._bar.update(int(last))
