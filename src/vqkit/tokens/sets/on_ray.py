"""Ray Data: the shards of a job as the rows of a data set that actors turn into files.

The folder, the images and this package must be there on every machine of the cluster, under the
same names. Nothing passes through Ray but the job and the numbers of shards.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from vqkit.clustering.processes import portable
from vqkit.tokens.sets.job import Job, Worker


class _Writer:
    """What an actor holds: a job, which it opens for its first shard."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._worker: Worker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Write the shard that `batch` names; an error is a row too, which Ray would bury."""
        images, error = 0, b""
        try:
            self._worker = self._worker or self._job.open()
            images = sum(self._worker.run([int(number) for number in batch["item"]]))
        except Exception as raised:  # whatever it is, it belongs to the one who asked
            error = pickle.dumps(portable(raised))
        return {"images": [images], "error": [error]}


def run_on_ray(job: Job, numbers: list[int], count: int) -> Generator[int, None, None]:
    """Write shards with `count` actors; yield the number of images of each that is finished.

    Joins the cluster that RAY_ADDRESS names, or that this process has joined already; otherwise
    Ray runs on this machine, until the end of the call. Ray starts a lost actor again, and shards
    that are whole stay.

    Raises:
        ImportError: Ray is missing.
        Exception: what an actor raised.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(
            "engine='ray': needs Ray Data, which is not installed; pip install 'vqkit[ray]'"
        ) from error
    count = min(count, len(numbers))
    threads = int(job.facts["environment"]["threads"])
    gpu = job.facts["environment"]["device"] == "cuda"
    with _joined(ray, count * threads):
        shards = ray.data.from_items(numbers, override_num_blocks=len(numbers)).map_batches(
            _Writer,
            batch_size=1,
            fn_constructor_args=(job,),
            compute=ray.data.ActorPoolStrategy(size=count),
            num_cpus=threads,
            num_gpus=1 if gpu else None,
        )
        for row in shards.iter_rows():
            if row["error"]:
                raise pickle.loads(row["error"])
            yield int(row["images"])


@contextmanager
def _joined(ray: Any, cpus: int) -> Iterator[None]:
    """Be part of a cluster, or start Ray here and end it again."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # it tells much on its way
    ray.data.DataContext.get_current().enable_progress_bars = False
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    settings = {} if address else {"num_cpus": cpus + 1, "include_dashboard": False}
    try:
        ray.init(address or "local", log_to_driver=False, **settings)
    except Exception as error:  # Ray raises plain ones where it does not start
        where = f"the cluster at {address} cannot be joined" if address else "Ray does not start"
        raise OSError(f"engine='ray': {where} ({error}); try again, or --workers") from error
    try:
        yield
    finally:
        ray.shutdown()
