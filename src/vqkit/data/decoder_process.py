"""What a worker process runs: it turns places of images into pixels in shared memory.

Started by `decoder_pool`, which says why it is as it is. It ends when the other side of its
connection is gone. Torch is never imported here.
"""

from __future__ import annotations

import mmap
import os
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageFile

from vqkit.data.decoding import BrokenImageError
from vqkit.data.preparing import Pixels, Preparation, Size, Task

Shape: TypeAlias = "tuple[tuple[int, ...], Size]"
"""Of an image as it was prepared, and its size before."""
Answer: TypeAlias = "tuple[int, list[Shape | BrokenImageError]] | Exception"
"""Bytes used, and the shapes of all images, one behind the other in the shared memory; or the error
that ended the work."""

_LEAST_BYTES = 1 << 20


def greeting(preparation: Preparation) -> tuple[Preparation, int | None, bool]:
    """Return the first message to a process: the work, and Pillow's settings of this one."""
    return preparation, Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES


def main(connection_number: int, memory: int) -> None:
    """Answer lists of tasks until the other side goes; both arguments are open file descriptors."""
    connection = Connection(connection_number)
    parent = os.getppid()
    preparation, limit, truncated = connection.recv()
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = limit, truncated
    shared = mmap.mmap(-1, 1)  # replaced by the first answer
    while _wait_for_work(connection, parent):
        tasks: list[Task] = connection.recv()
        images: list[Pixels] = []
        shapes: list[Shape | BrokenImageError] = []
        try:
            for task in tasks:
                if connection.poll():  # nothing else can come now but the end
                    return
                try:
                    pixels, before = preparation(task)
                    images.append(pixels)
                    shapes.append((pixels.shape, before))
                except BrokenImageError as broken:
                    shapes.append(broken)
            size = sum(image.nbytes for image in images)
            if size > len(shared):
                shared.close()
                shared = _larger(memory, size)
            _write(images, np.frombuffer(shared, dtype=np.uint8))
            answer: Answer = (size, shapes)
        except Exception as error:  # whatever it is, it belongs to the one who asked
            answer = _portable(error)
        connection.send(answer)


def _wait_for_work(connection: Connection, parent: int) -> bool:
    # The connection ends with the parent, unless a fork of it holds a copy: so look at both.
    while not connection.poll(2.0):
        if os.getppid() != parent:
            return False
    return True


def _larger(memory: int, size: int) -> mmap.mmap:
    capacity = max(_LEAST_BYTES, size + size // 4)
    os.ftruncate(memory, capacity)
    return mmap.mmap(memory, capacity)


def _write(images: list[Pixels], shared: Pixels) -> None:
    start = 0
    for image in images:
        shared[start : start + image.nbytes].reshape(image.shape)[...] = image
        start += image.nbytes


def _portable(error: Exception) -> Exception:
    # Errors of libraries may not survive pickling; those of Python do.
    return error if type(error).__module__ == "builtins" else RuntimeError(repr(error))


if __name__ == "__main__":
    with suppress(EOFError, ConnectionError):  # the other side is gone: so is the work
        main(int(sys.argv[1]), int(sys.argv[2]))
