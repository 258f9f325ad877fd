"""`write_token_set`: the tokens of a whole image set, in shards that a killed command goes on from.

Shard k always holds the same images, cut into the same batches: its bytes depend neither on kills
nor on how many processes of which engine share the work.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from vqkit.clustering.processes import Processes, together
from vqkit.clustering.progress import Progress, open_progress
from vqkit.codebooks.set_folders import begin, claimed_by_first, read_records
from vqkit.config import DataConfig, require
from vqkit.config.core import check_choice
from vqkit.data import ImageSet
from vqkit.models import ImageTokenizer
from vqkit.tokens.frequencies import tokenizer_hash
from vqkit.tokens.sets.job import Job, environment, open_images
from vqkit.tokens.sets.layout import Layout, pyarrow
from vqkit.tokens.sets.manifest import read_manifest
from vqkit.tokens.sets.mapped import remove_unpacked
from vqkit.tokens.sets.shards import TOKENS, complete
from vqkit.tokens.sets.token_set import TokenSet

Engine = Literal["processes", "torchrun", "ray"]
PREPARING = ("channels", "resize", "stretch", "crop", "crop_size")
"""Settings of the images that change pixels."""


def write_token_set(
    tokenizer: ImageTokenizer,
    images: ImageSet | DataConfig,
    out: str | Path,
    *,
    latents: bool = False,
    batch_size: int = 32,
    shard_images: int = 1024,
    threads: int = 1,
    workers: int = 1,
    engine: Engine = "processes",
    device: str | torch.device | None = None,
    resume: bool = True,
    progress: bool = True,
) -> TokenSet:
    """Write the tokens of all images into the folder `out`; the same call goes on after a kill.

    Memory holds a shard of tokens, what is read ahead, and images of sets that lie in memory.

    Args:
        tokenizer: moved to `device`.
        images: what to encode, each whole or its centre crop. More than one worker and Ray need
            the settings (`DataConfig`): every process opens the images itself.
        latents: also store the maps before quantization, as float16 (`encode_latents`).
        batch_size: images of one size that are encoded together.
        shard_images: images of a file, and the most work of a process that a kill loses.
        threads: of torch in every process. More than one may decide near ties otherwise, so that
            it is part of what a token set is made with.
        workers: processes on this machine, or of the Ray cluster.
        engine: "processes"; "torchrun", whose processes all make the same call; or "ray".
        device: "cpu", "cuda", ...; None leaves the tokenizer where it is.
        resume: go on with what is in `out`; False begins again.
        progress: write lines with the time left to stderr.

    Raises:
        ValueError: settings that do not fit; `out` holds something else, or tokens of other
            settings (the message names which); a broken image with data.on_broken="fail", or no
            readable one; latents that are not finite, or beyond float16.
        ImportError: pyarrow or Ray is missing.
    """
    pyarrow("out")
    _check(images, engine, batch_size, shard_images, threads, workers)
    processes = together() if engine == "torchrun" else Processes()
    first = processes.rank == 0
    folder = Path(out).expanduser()
    where = processes.agreed(partial(_device_of, tokenizer, device))
    opened = images
    if isinstance(opened, DataConfig):
        opened = processes.agreed(partial(open_images, opened))
    settings = {"batch_size": batch_size, "shard_images": shard_images}
    facts = processes.agreed(
        partial(describe, tokenizer, opened, settings, where, threads, latents=latents)
    )
    processes.require_same({"out": str(folder), **facts})
    with claimed_by_first(folder, processes, doing="tokenizes"):
        done = processes.agreed(lambda: first and _begin(folder, facts, resume=resume))
        if not processes.gather(done)[0]:
            spread = engine == "ray" or workers > 1
            job = Job(tokenizer, opened, folder, facts, where)
            if spread:  # what can be sent
                job = Job(tokenizer.cpu(), images, folder, facts, where)
            _run(job, engine, workers, processes, progress)
            work = partial(complete, folder, facts, job.num_shards, opened.skipped)
            processes.agreed(work if first else lambda: None)
        return processes.agreed(lambda: TokenSet.open(folder))


def _begin(folder: Path, facts: dict[str, Any], *, resume: bool) -> bool:
    """Do as `set_folders.begin`, and remove what is unpacked of shards that are not there."""
    there = begin(folder, facts, resume=resume, kind=TOKENS)
    remove_unpacked(folder, read_manifest(folder)["shards"] if there else ())
    return there


def _check(
    images: ImageSet | DataConfig,
    engine: Engine,
    batch_size: int,
    shard_images: int,
    threads: int,
    workers: int,
) -> None:
    check_choice("engine", engine, Engine)
    counts = {
        "batch_size": batch_size,
        "shard_images": shard_images,
        "threads": threads,
        "workers": workers,
    }
    for name, value in counts.items():
        require(value >= 1, f"{name}={value}", "must be at least 1")
    require(
        engine != "torchrun" or workers == 1,
        f"workers={workers} with engine='torchrun'",
        "torchrun says how many processes there are; leave workers out",
    )
    require(
        (engine != "ray" and workers == 1) or isinstance(images, DataConfig),
        f"engine={engine!r}, workers={workers}: images",
        "give the settings of the images (DataConfig), which other processes can open",
    )
    config = images if isinstance(images, DataConfig) else images.config
    require(
        config.crop != "random" and not config.flip,
        f"data.crop={config.crop!r}, data.flip={config.flip}",
        "tokens are of whole images or their centre crop; take crop='center' or 'none', flip=False",
    )


def _device_of(tokenizer: ImageTokenizer, device: str | torch.device | None) -> str:
    """Return where to compute; a device that is not there is a `ValueError`."""
    if device is None:
        return str(next(tokenizer.parameters()).device)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch's way to refuse a device
        raise ValueError(f"device={str(device)!r}: {error}") from error
    return str(device)


def describe(
    tokenizer: ImageTokenizer,
    images: ImageSet,
    settings: dict[str, Any],
    device: str,
    threads: int,
    *,
    latents: bool,
) -> dict[str, Any]:
    """Return what a token set is made of, as the manifest has it."""
    channels = tokenizer.config.network.image_channels
    require(
        images.channels == channels,
        f"data.channels={images.channels}",
        f"the tokenizer takes images of {channels}",
    )
    layout = Layout(
        slots=tokenizer.quantizer.slots,
        labels=images.labelled,
        captions=images.captioned,
        latent_channels=tokenizer.quantizer.width if latents else 0,
    )
    config = images.config
    chosen = {name: getattr(config, name) for name in PREPARING}
    text = json.dumps(chosen, sort_keys=True, separators=(",", ":"))
    names = images.label_names
    return {
        "tokenizer": {
            "hash": tokenizer_hash(tokenizer),
            "stride": tokenizer.stride,
            "image_channels": channels,
        },
        **layout.facts(),
        "label_names": None if names is None else list(names),
        "preprocessing": {**chosen, "hash": hashlib.sha256(text.encode()).hexdigest()},
        "environment": environment(device, next(tokenizer.parameters()).dtype, threads),
        "settings": settings,
        "data": {
            "source": config.source,
            "path": config.path,
            "split": config.split,
            "fingerprint": images.fingerprint(),
            "images": len(images),
        },
    }


def _run(job: Job, engine: Engine, workers: int, processes: Processes, progress: bool) -> None:
    """Write what is missing."""
    first = processes.rank == 0
    # One process looks, for the first may have begun to write when another looks.
    found = processes.agreed(lambda: sorted(read_records(job.folder, job.num_shards)))
    there = set(processes.gather(found)[0])
    missing = [number for number in range(job.num_shards) if number not in there]
    mine = missing[slice(*processes.share(len(missing)))]
    shown = open_progress(progress and first, sum(len(job.span(n)) for n in mine), "tokenize")
    if engine == "torchrun":
        _in_rounds(job, mine, -(-len(missing) // processes.size), processes, shown)
        return
    with closing(_dealt(job, missing, engine, workers)) as finished:
        for count in finished:
            shown.tick(count)


def _in_rounds(
    job: Job, mine: list[int], rounds: int, processes: Processes, shown: Progress
) -> None:
    """Write one shard a round, so that nobody waits long for an error of another."""
    with processes.agreed(job.open) as worker, closing(worker.run(mine)) as finished:
        for _ in range(rounds):
            shown.tick(processes.agreed(lambda: next(finished, 0)))


def _dealt(
    job: Job, missing: list[int], engine: Engine, workers: int
) -> Generator[int, None, None]:
    if not missing:  # a kill came between the last shard and the manifest
        return
    if engine == "ray":
        from vqkit.tokens.sets.on_ray import run_on_ray

        yield from run_on_ray(job, missing, workers)
    elif workers > 1:
        from vqkit.tokens.sets.workers import run_in_processes

        yield from run_in_processes(job, missing, workers)
    else:
        with job.open() as worker:
            yield from worker.run(missing)
