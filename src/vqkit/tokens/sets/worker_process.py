"""What a worker process of `workers` runs: it writes the shards that it is told.

It ends when the process that started it is gone.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
import warnings
from contextlib import suppress
from multiprocessing.connection import Connection

from vqkit.clustering.processes import portable
from vqkit.tokens.sets.job import Job

Answer = int | Exception | None
"""Images of a shard that is finished; what went wrong; or the end."""


def main(connection_number: int) -> None:
    """Write the shards of a job; the argument is an open file descriptor."""
    parent = os.getppid()
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    connection = Connection(connection_number)
    job: Job = pickle.loads(connection.recv_bytes())
    numbers: list[int] = connection.recv()
    warnings.simplefilter(
        "ignore"
    )  # the first process warns, and the manifest lists what is left out
    try:
        with job.open() as worker:
            for count in worker.run(numbers):
                connection.send(count)
        connection.send(None)
    except Exception as error:  # whatever it is, it belongs to the one who asked
        connection.send(portable(error))
    connection.poll(None)  # until the other side has read it and goes


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


if __name__ == "__main__":
    with suppress(EOFError, ConnectionError):  # the other side is gone: so is the work
        main(int(sys.argv[1]))
