"""Worker processes on this machine: every one writes its share of the shards.

Each is a fresh Python, joined to this process by a socket. When this process ends, however it ends,
the workers see it and go; a worker that was killed ends the command, which goes on when it is
called again.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Generator, Iterable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import wait

from vqkit.config import require
from vqkit.tokens.sets import worker_process
from vqkit.tokens.sets.job import Job


def run_in_processes(job: Job, numbers: list[int], count: int) -> Generator[int, None, None]:
    """Write shards in `count` processes; yield the number of images of each that is finished.

    Raises:
        ChildProcessError: a worker was killed, or ended by itself.
        Exception: what a worker raised; the others are stopped.
    """
    require(
        os.name == "posix",
        f"workers={count}",
        f"worker processes need Linux or macOS, this is {sys.platform}; use 1",
    )
    message = pickle.dumps(job)
    workers: list[_Worker] = []
    try:
        count = min(count, len(numbers))
        for rank in range(count):  # contiguous shares, which read a tar or a stream in one go
            share = slice(len(numbers) * rank // count, len(numbers) * (rank + 1) // count)
            workers.append(_Worker(message, numbers[share]))
        yield from _collect(workers)
    finally:
        for worker in workers:
            worker.stop()


def _collect(workers: Iterable[_Worker]) -> Generator[int, None, None]:
    running = {worker.connection: worker for worker in workers}
    while running:
        for connection in wait(list(running)):
            worker = running[connection]  # type: ignore[index]
            answer = worker.answer()
            if isinstance(answer, Exception):
                raise answer
            if answer is None:
                del running[worker.connection]
            else:
                yield answer


class _Worker:
    """One process and its socket."""

    def __init__(self, message: bytes, numbers: list[int]) -> None:
        self.connection, theirs = Pipe()
        command = [sys.executable, "-P", "-m", worker_process.__name__, str(theirs.fileno())]
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is the business of this process
                env=os.environ | {"PYTHONPATH": path},
            )
        finally:
            theirs.close()
        with suppress(OSError):  # it has died already: `answer` will say so
            self.connection.send_bytes(message)
            self.connection.send(numbers)

    def answer(self) -> worker_process.Answer:
        """Return the next message; a process that is gone is a `ChildProcessError`."""
        try:
            answer: worker_process.Answer = self.connection.recv()
        except (EOFError, OSError) as error:
            code = self._process.wait()
            how = f"ended (exit code {code})" if code >= 0 else "was killed by "
            how += "" if code >= 0 else signal.Signals(-code).name
            raise ChildProcessError(
                f"workers: process {self._process.pid} {how}; finished shards are whole, and the "
                "same command goes on (with fewer workers, if memory ran out)"
            ) from error
        return answer

    def stop(self) -> None:
        """Kill the process, which has finished or is not wanted any more."""
        self._process.kill()
        self._process.wait()
        self.connection.close()
