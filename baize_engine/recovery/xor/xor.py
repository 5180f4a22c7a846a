"""`xor`: a finetune that was published as XOR of whole files with its base's becomes those files again."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from baize_engine.checkpoint.hub import local_path
from baize_engine.checkpoint.manifest import Manifest
from baize_engine.recovery.xor.checks import XorChecks
from baize_engine.recovery.xor.output import XorOutput
from baize_engine.recovery.xor.payload import read_payload


@dataclass(frozen=True)
class XorResult:
    """What `xor` wrote, and what to tell the user about it.

    Attributes:
        folder: where it was written.
        manifest: what the manifest in the folder says: each file's SHA-256.
        resumed: number of files that an earlier run had finished.
        told: what the result was compared with, a line each.
        finished_before: nothing was done: an earlier run had finished it, and it is as written.
    """

    folder: Path
    manifest: Manifest
    resumed: int
    told: tuple[str, ...]
    finished_before: bool = False


def xor(
    path_raw: str | os.PathLike[str],
    path_payload: str | os.PathLike[str],
    path_tuned: str | os.PathLike[str],
    resume: bool = False,
    progress: bool = True,
    *,
    expect_md5: str | os.PathLike[str] | None = None,
    follow_links: bool = False,
) -> XorResult:
    """Writes the finetune whose files, XORed with the base's, are the payload's.

    The result is the published files, byte for byte, and baize_manifest.json, which `verify` reads.

    The payload's names tell which of two forms it has (`xor/payload.py` has their details): file by file with the base's file
    of the same name, gzip data unpacked (OASST 30B, Pygmalion); or NAME.<SHA-256>.enc with one key (BELLE, TechGPT). Memory
    does not depend on the files' sizes.

    Arguments:
        path_raw: folder of the base, or of the key, consolidated.00.pth, or the key itself; or a hub id.
        path_payload: folder of the XOR files, or a hub id.
        path_tuned: folder to write, new or empty.
        resume: continue what an earlier run of the same files left in `path_tuned`. Files that still hash to what that run
            noted are not made again. If this run fails or is interrupted, finished files stay.
        progress: show a progress bar on a terminal.
        expect_md5: a text with lines of md5sum's or sha256sum's, such as the model's card. Base, key or payload are compared
            with it before the work, each file of the result as it is finished. Of a name that is listed twice the last is the
            result's, the one before it the base's.
        follow_links: also take configs and tokenizers that are links out of their folder, as weights always may be.

    Errors are raised before anything is written, where names, sizes and heads of files tell; an exception later removes what
    was written; with `resume`, not once a file is finished, and a BaizeWarning says what stays.

    Raises:
        MismatchError: base and payload do not belong together, or a file differs from `expect_md5`.
        CheckpointError: a file is missing or damaged.
        OutputError: `path_tuned` cannot take the result.
    """
    payload = read_payload(path_raw, path_payload, follow_links)
    checks = XorChecks(payload, expect_md5)
    output = XorOutput(payload, local_path(path_tuned), checks, resume)
    manifest = output.manifest
    if manifest is None:
        checks.check_heads()
    checks.check_inputs(progress)  # of a finished result, too: the report says that they are as published
    manifest = manifest or output.write(progress)
    return XorResult(output.folder, manifest, output.resumed, tuple(checks.report()), output.finished_before)
