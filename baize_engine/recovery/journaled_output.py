"""A result's folder, whatever it holds, from what an earlier run left there to the journal's end."""

from __future__ import annotations

import errno
import hashlib
import json
import platform
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, replace
from typing import Any, Generic

from baize_engine import __version__
from baize_engine.checkpoint.manifest import MANIFEST_NAME, Manifest, read_manifest
from baize_engine.checkpoint.output_folder import PARTIAL, OutputFolder, already_finished, check_output
from baize_engine.errors import BaizeWarning, CheckpointError, OutputError
from baize_engine.interrupts import deferred
from baize_engine.recovery.journal import Journal, Record, is_unfinished, refuse_busy
from baize_engine.recovery.sources import Sources
from baize_engine.recovery.verify import verify


class JournaledOutput(ABC, Generic[Record]):
    """One result in the folder that `files` fills, with a journal of what is finished.

    Making one writes nothing. It raises OutputError where the folder is in use, and where it holds this very result, finished:
    with `resume` that is no error, and `manifest` is there from the beginning.

    An error or Ctrl-C before the result is whole removes what was made. With `resume`, nothing is removed once a part is
    finished: the next run with `resume` goes on from there, as after SIGKILL.
    """

    journal: Journal[Record]
    parts: str  # what the result is made of, in the plural
    parse: Callable[[Mapping[str, Any]], Record]  # static: makes a record of its JSON form, as `Journal` wants it

    def __init__(self, operation: str, files: OutputFolder, nbytes: int, sources: Sources, resume: bool) -> None:
        self.operation, self.files, self.folder, self.nbytes = operation, files, files.folder, nbytes
        self.sources = sources
        self.resumable = resume
        self.finished_parts: Mapping[str, Record] = {}  # the journal's, once it is open
        self.versions = {"baize_engine": __version__, "python": platform.python_version()}
        self.resumed = 0  # how many tensors or files an earlier run had finished
        self.manifest = self.find_finished()
        self.finished_before = self.manifest is not None
        if self.finished_before and not resume:
            raise already_finished(self.folder)
        if not self.finished_before and not files.resume:
            refuse_busy(self.folder)
            if (self.folder / MANIFEST_NAME).exists() and not is_unfinished(self.folder):
                raise OutputError(
                    errno.ENOTEMPTY,
                    f"{self.folder} is not empty: it holds a finished result of other sources, options, or files beside the "
                    "weights: name another folder, or remove it",
                )
            check_output(self.folder, nbytes)

    def identity(self) -> dict[str, object]:
        """What a run must have in common with the one that it resumes, besides operation and sources, as JSON."""
        return {}

    @abstractmethod
    def is_of(self, manifest: Manifest) -> bool:
        """Whether a manifest of the same operation and sources is of this very result."""

    @abstractmethod
    def count(self) -> int:
        """How many parts there are to finish."""

    @abstractmethod
    def names(self) -> list[str]:
        """The files beside the weights or all files, in the order in which they get their names."""

    def find_finished(self) -> Manifest | None:
        """The manifest, if the folder holds just this result, finished.

        Of several results of one run that was killed at its very end, some are finished. OutputError where the result is not
        as it was written, CheckpointError where the manifest cannot be read.
        """
        if is_unfinished(self.folder) or not (self.folder / MANIFEST_NAME).is_file():
            return None
        manifest = read_manifest(self.folder)
        sources = {role: [replace(file, sha256=None) for file in files] for role, files in manifest.sources.items()}
        if (manifest.operation, sources) != (self.operation, self.sources.records) or not self.is_of(manifest):
            return None
        try:
            problems = verify(self.folder).problems
        except CheckpointError as error:
            problems = (str(error),)
        if problems:
            raise OutputError(
                errno.ENOTEMPTY, f"{self.folder} holds a finished result that is not as it was written: {problems[0]}"
            )
        return manifest

    def _open_journal(self, stack: ExitStack) -> None:
        sources = {role: [asdict(file) for file in files] for role, files in self.sources.records.items()}
        identity = {"operation": self.operation, "sources": sources, **self.identity()}
        run = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.journal = stack.enter_context(closing(Journal(self.folder, run, self.parse, self.files.resume)))
        self.finished_parts = self.journal.finished

    def lock(self, stack: ExitStack) -> None:
        """Reads and locks the journal of a run to resume, which changes nothing. A new journal needs the folder first."""
        if self.files.resume:
            self._open_journal(stack)

    def open(self, stack: ExitStack) -> None:
        """Makes the folder and its journal. `stack` sees to what was made and is not finished."""
        stack.callback(self._leave)  # before anything is made: Ctrl-C may come between any two lines
        self.files.make_folder(self.nbytes)
        with deferred():  # what Ctrl-C found made and not yet tracked would stay
            if not self.files.resume:
                # before the files: it decides which of two recoveries has the folder, and resume looks for it
                self._open_journal(stack)
            self.files.track(self.journal.path)
        if self.files.resume:  # files that a run killed at its end has renamed already
            for name in (*reversed(self.names()), MANIFEST_NAME):
                self.files.track(self.folder / name)
                self.files.track(self.folder / (name + PARTIAL))

    def _leave(self) -> None:
        """Ends what was begun on the disk, if the result is not whole: removes it, or leaves it to the next run."""
        if self.files.kept or not (self.resumable and self.finished_parts):
            self.files.discard()
            return
        self.files.release()
        done = f"{len(self.finished_parts)} of {self.count()} {self.parts}"
        with suppress(BaizeWarning):  # where a filter makes it an error, it must not hide what ended the run
            warnings.warn(
                f"{self.folder} keeps {done} that are finished: continue with --resume, or remove the folder",
                BaizeWarning,
                stacklevel=2,
            )

    def forget_journal(self) -> None:
        """Removes the journal of a whole result. That of another is what resume needs, or goes with the rest."""
        if self.files.kept:
            self.journal.remove()
