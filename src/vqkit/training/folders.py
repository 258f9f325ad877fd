"""Folders that are there whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_UNFINISHED: Final = ".unfinished_"
_REPLACED: Final = ".unfinished_old_"


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """Give an empty folder that takes the place of `final` if the block ends well, durably.

    A crash or a full disk (`OSError`) leaves what stood there before, or nothing.
    """
    part, old = (final.with_name(f"{mark}{final.name}") for mark in (_UNFINISHED, _REPLACED))
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        _sync(part)
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            os.rename(final, old)
        os.rename(part, final)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    _sync(final.parent)


def remove_folder(folder: Path) -> None:
    """Take a folder out of a run in one move: a crash leaves no half of it behind."""
    gone = folder.with_name(f"{_UNFINISHED}gone_{folder.name}")
    shutil.rmtree(gone, ignore_errors=True)
    os.rename(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)


def remove_unfinished(run: Path) -> None:
    """Remove what a killed process had begun to write, and put back what it had put aside."""
    for path in run.glob(f"{_UNFINISHED}*"):
        final = run / path.name.removeprefix(_REPLACED)
        if path.name.startswith(_REPLACED) and not final.exists():
            os.rename(path, final)
        else:
            shutil.rmtree(path)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
