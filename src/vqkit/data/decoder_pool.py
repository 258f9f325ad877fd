"""Worker processes that decode images; their pixels come back through shared memory.

Each is a fresh Python without torch, joined to this process by a socket for messages and by a
memory file without a name for pixels. So:

- CUDA and threads of this process do no harm, and a script needs no `if __name__ == "__main__"`.
- When this process ends, however it ends, the sockets close and the workers go; the memory goes
  with the last of them, and no /dev/shm of a container has to hold it.
- Workers ignore Ctrl-C and the signals that batch systems send to every process: what happens then
  is this process's decision.
"""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from multiprocessing import Pipe
from queue import SimpleQueue
from types import TracebackType

import numpy as np

from vqkit.config.core import require
from vqkit.data import decoder_process
from vqkit.data.decoding import BrokenImageError
from vqkit.data.preparing import Pixels, Preparation, Size, Task

_BLOCKED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
# A worker has one thread of its own; libraries that start one per processor would multiply.
_ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}


class DecoderPool:
    """`count` worker processes that prepare images for any number of threads. Close it after use.

    Raises `ValueError` on systems without POSIX processes.
    """

    def __init__(self, preparation: Preparation, count: int) -> None:
        require(
            os.name == "posix",
            f"data.workers={count}",
            f"worker processes need Linux or macOS, this is {sys.platform}; use 0, threads",
        )
        self._all: list[_Decoder] = []
        self._free: SimpleQueue[_Decoder] = SimpleQueue()
        try:
            for _ in range(count):
                self._all.append(_Decoder(preparation, f"data.workers={count}"))
                self._free.put(self._all[-1])
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> DecoderPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def prepare(self, tasks: list[Task]) -> list[tuple[Pixels, Size] | BrokenImageError]:
        """Let one process do `tasks`, in order; a broken image leaves its error in its place.

        The others are as `Preparation` gives them, with their size before.

        Any other error of the process is raised here. One that died is a `ChildProcessError`.
        """
        decoder = self._free.get()
        try:
            return decoder.prepare(tasks)
        finally:
            self._free.put(decoder)

    def stop(self) -> None:
        """Kill the processes; calls of `prepare` that wait for them fail at once."""
        for decoder in self._all:
            decoder.kill()
        for decoder in self._all:
            decoder.wait()

    def close(self) -> None:
        """Kill the processes and free what belonged to them; nobody may be in `prepare`."""
        self.stop()
        for decoder in self._all:
            decoder.close()


class _Decoder:
    """One process, its socket, and its memory."""

    def __init__(self, preparation: Preparation, setting: str) -> None:
        self._setting = setting
        self._connection, theirs = Pipe()
        self._memory = _nameless_memory()
        self._shared = mmap.mmap(-1, 1)  # replaced when the first pixels come
        numbers = (theirs.fileno(), self._memory)
        command = [sys.executable, "-P", "-m", decoder_process.__name__, *map(str, numbers)]
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        # A blocked signal stays blocked in the child: there is no moment in which it would act.
        blocked = {getattr(signal, name) for name in _BLOCKED}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=numbers,
                env=os.environ | _ONE_THREAD | {"PYTHONPATH": path},
            )
        except BaseException:
            self._connection.close()
            os.close(self._memory)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        with suppress(OSError):  # it has died already: `prepare` will say so
            self._connection.send(decoder_process.greeting(preparation))

    def prepare(self, tasks: list[Task]) -> list[tuple[Pixels, Size] | BrokenImageError]:
        try:
            self._connection.send(tasks)
            answer: decoder_process.Answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise ChildProcessError(self._epitaph()) from error
        if isinstance(answer, Exception):
            raise answer
        size, shapes = answer
        if size > len(self._shared):
            self._shared.close()
            capacity = os.fstat(self._memory).st_size
            self._shared = mmap.mmap(self._memory, capacity, prot=mmap.PROT_READ)
        pixels = np.frombuffer(self._shared, dtype=np.uint8, count=size).copy()
        found: list[tuple[Pixels, Size] | BrokenImageError] = []
        start = 0
        for one in shapes:
            if isinstance(one, BrokenImageError):
                found.append(one)
                continue
            shape, before = one
            stop = start + int(np.prod(shape))
            found.append((pixels[start:stop].reshape(shape), before))
            start = stop
        return found

    def _epitaph(self) -> str:
        code = self.wait()
        if code is None:
            return f"{self._setting}: a worker process does not answer; start the run again"
        if code >= 0:
            how = f"ended by itself (exit code {code}; its own message is in the error output)"
        else:
            how = f"was killed by {signal.Signals(-code).name}"
        return (
            f"{self._setting}: worker process {self._process.pid} {how}; if memory ran out, use "
            "fewer workers or a smaller batch, else start the run again"
        )

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int | None:
        """Reap the process; None if it does not end, as in a call to a dead network disk."""
        try:
            return self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return None

    def close(self) -> None:
        self._connection.close()
        self._shared.close()
        os.close(self._memory)


def _nameless_memory() -> int:
    """Open an empty file in memory; without memfd (macOS) a deleted one in the temporary folder."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("vqkit-pixels")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
