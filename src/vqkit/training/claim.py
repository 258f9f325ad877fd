"""One folder, one process that writes: two trainings would remove each other's checkpoints."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

WAIT: Final = 60.0
"""Seconds that a process waits for another one to leave the folder: a training whose launcher was
killed notices it after its step, and saves."""


@contextmanager
def claimed(folder: Path, *, doing: str = "trains") -> Iterator[None]:
    """Keep a folder for this process; only the first of several that work together claims it.

    The claim is a lock on the folder itself, which ends with the process however that ends. File
    systems and platforms without such locks go without. Folders that are made here and left empty
    are removed again.

    Raises:
        ValueError: `folder` is a file; or another process works there, and still does after `WAIT`
            seconds. The message says that it is `doing` what this one would do.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    descriptor = _open(folder, doing)
    try:
        yield
    finally:
        os.close(descriptor)
        with suppress(OSError):
            for place in made:
                place.rmdir()


def _open(folder: Path, doing: str) -> int:
    """Lock the folder that stands there now: another process may have removed the one before."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(f"out={folder}: is or lies below a file; name a folder") from error
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            _lock(descriptor, folder, doing)
            with suppress(FileNotFoundError):
                if os.fstat(descriptor).st_ino == folder.stat().st_ino:
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, folder: Path, doing: str) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    waited = 0.0
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if waited >= WAIT:
                raise ValueError(
                    f"out={folder}: another process {doing} here; wait for it, stop it, or choose "
                    "another folder"
                ) from error
        except OSError:  # no locks on this file system
            return
        if not waited:
            logger.warning("out=%s: another process %s here; waiting for it", folder, doing)
        time.sleep(0.25)
        waited += 0.25
