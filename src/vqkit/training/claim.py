"""One folder, one training: two at once would remove each other's checkpoints."""

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
"""Seconds that a training waits for another one to leave the folder: one whose launcher was killed
notices it after its step, and saves."""


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep the folder of a run for this training; only the first of several processes claims it.

    The claim is a lock on the folder itself, which ends with the process however that ends. File
    systems and platforms without such locks go without. Folders that are made here and left empty
    are removed again.

    Raises:
        ValueError: another process trains there, and still does after `WAIT` seconds.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    descriptor = _open(folder)
    try:
        yield
    finally:
        os.close(descriptor)
        with suppress(OSError):
            for place in made:
                place.rmdir()


def _open(folder: Path) -> int:
    """Lock the folder that stands there now: another process may have removed the one before."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            _lock(descriptor, folder)
            with suppress(FileNotFoundError):
                if os.fstat(descriptor).st_ino == folder.stat().st_ino:
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
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
                    f"out={folder}: another process trains here; wait for it, stop it, or choose "
                    "another folder"
                ) from error
        except OSError:  # no locks on this file system
            return
        if not waited:
            logger.warning("out=%s: another process trains here; waiting for it to leave", folder)
        time.sleep(0.25)
        waited += 0.25
