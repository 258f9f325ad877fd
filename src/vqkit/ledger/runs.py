"""Trains the rows of a table and measures them; finished rows are taken as they are.

Several processes may work on the same rows: each row is claimed by one of them, the others go on
with the next.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vqkit.config import DataConfig, RunConfig, from_dict
from vqkit.ledger.costs import side_of
from vqkit.ledger.jobs import Job
from vqkit.ledger.observed import (
    Measurement,
    Observation,
    read_observation,
    write_observation,
)
from vqkit.ledger.segments import count_sharing

if TYPE_CHECKING:
    from vqkit.data import ImageSet
    from vqkit.evaluation import Evaluation
    from vqkit.evaluation.scoring import Networks
    from vqkit.metrics import LosslessRate, Protocol
    from vqkit.models import ImageTokenizer

PIXELS: Final = 2**20
"""Pixels that are measured together at most: 16 images of 256 x 256."""
POLL: Final = 2.0
"""Seconds between two looks at rows that other processes work on."""
_PLACES: Final = ("path", "files", "workers")


def _nothing(_: str) -> None:
    """Tell nobody."""


def _unwatched(_: int) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """Where rows are trained and how they are measured."""

    out: Path
    """Folder of the runs."""
    ledger: Path
    """Folder of the observations."""
    protocols: Sequence[str]
    """Names of the protocols that every row is measured under; numbers under others stay."""
    networks: bool = False
    """Measure FID and LPIPS, too, each as its protocol has it; needs weights."""
    reference: str | None = None
    """Statistics for the FID of protocols that compare with files of another size and cut."""
    device: str = "cpu"
    """Of the measurement; training takes what there is."""
    tell: Callable[[str], None] = _nothing
    """Called with a line about every row."""
    watch: Callable[[int], AbstractContextManager[None]] = _unwatched
    """Entered with the number of a row while it is trained."""
    loaded: dict[DataConfig, ImageSet] = field(default_factory=dict)
    """Test images, read once."""
    lossless: dict[DataConfig, LosslessRate] = field(default_factory=dict)


def reproduce(jobs: Sequence[Job], bench: Bench) -> list[Observation]:
    """Train and measure every job that is not yet observed; return the observations in order.

    Raises:
        ValueError: an observation of that name is of a run with other settings.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the run was saved, and the same call goes on.
    """
    found: dict[int, Observation] = {}
    left, waiting = list(range(len(jobs))), 0
    while left:
        before = len(left)
        for number in list(left):
            with _claimed(bench.out / ".claims" / jobs[number].observation) as mine:
                if mine:
                    found[number] = _make(jobs[number], number, bench)
                    left.remove(number)
        if len(left) == before:
            if len(left) != waiting:
                bench.tell(f"waiting for {len(left)} row(s) that other processes work on")
            waiting = len(left)
            time.sleep(POLL)
    return [found[number] for number in range(len(jobs))]


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Return all settings of a run but its name, its log and the places of its files, as JSON."""
    from vqkit.training.run_folder import config_to_json

    values = config_to_json(config)
    for name in ("name", "log", "validation"):
        values.pop(name)
    for name in ("data", "test_data"):
        values[name] = {k: v for k, v in (values[name] or {}).items() if k not in _PLACES}
    return values


def _same_settings(saved: Mapping[str, Any], config: RunConfig) -> bool:
    """Whether a run was made with these settings; one that is newer than it has its default."""
    placed = {name: {**saved[name], "path": "."} for name in ("data", "test_data")}
    try:
        known: RunConfig = from_dict(RunConfig, {"name": config.name, **saved, **placed})
    except ValueError:
        return False  # settings that this version does not know
    return settings_of(known) == settings_of(config)


def _make(job: Job, number: int, bench: Bench) -> Observation:
    path = bench.ledger / f"{job.observation}.json"
    known = read_observation(path) if path.is_file() else None
    if known is not None and not _same_settings(known.settings, job.config):
        raise ValueError(f"{path}: was observed with other settings; delete it to observe it again")
    protocols = _lacking(known, job, bench)
    if known is not None and not protocols:
        bench.tell(f"{job.observation}: was observed before, in {path}")
        return known
    observation = _observe(job, number, bench, protocols)
    if known is not None:
        _tell_kept(observation, known, bench)
        observation = observation.over(known)
    bench.tell(f"{job.observation}: wrote {write_observation(observation, bench.ledger)}")
    return observation


def _lacking(known: Observation | None, job: Job, bench: Bench) -> list[str]:
    """Return the protocols to measure under: all, or those that an observation lacks."""
    if known is None:
        return list(bench.protocols)
    lacking = []
    for protocol in bench.protocols:
        measured = known.measurement(protocol)
        wanted = network_metrics(protocol) if bench.networks else ()
        if measured is None or any(measured.values.get(name) is None for name in wanted):
            lacking.append(protocol)
    if lacking and not (bench.out / job.name / "result.json").is_file():
        # It will be trained anew: what was measured of the former run belongs to that.
        lacking = list(dict.fromkeys([one.protocol_name for one in known.measurements] + lacking))
    return lacking


def _tell_kept(found: Observation, known: Observation, bench: Bench) -> None:
    """Tell which measurements stay because the new ones lack numbers."""
    for one in found.measurements:
        former = known.measurement(one.protocol_name)
        lost = former.lost_in(one) if former is not None else []
        if lost:
            what = f"the former measurement under {one.protocol_name} stays"
            bench.tell(f"{found.name}: {what}, with its {', '.join(lost)}")


def network_metrics(protocol: str) -> tuple[str, ...]:
    """Return the metrics that need weights under a protocol; under vqkit's own, all it can."""
    from vqkit.metrics import DEFAULT, find_protocol

    if protocol == DEFAULT.name:
        return ("fid", "lpips_vgg", "lpips_alex")
    found = find_protocol(protocol)
    lpips = tuple(f"lpips_{net}" for net in found.lpips.split("+") if net)
    return (*lpips, "fid") if found.fid_resize else lpips


def _observe(job: Job, number: int, bench: Bench, protocols: Sequence[str]) -> Observation:
    from vqkit.training import train
    from vqkit.training.run_folder import parse_result

    assert job.config.test_data is not None  # every job has test images
    folder = bench.out / job.name
    if (folder / "result.json").is_file():
        bench.tell(f"{job.name}: was trained before, in {folder}")
    with bench.watch(number):
        tokenizer = train(job.config, out=folder, progress=False).tokenizer.to(bench.device)
    result = parse_result(folder / "result.json")
    images = _images(job.config.test_data, bench)
    bench.tell(f"{job.observation}: measuring on {len(images):,} images of {job.test_set}")
    evaluations = _evaluate(tokenizer, images, job, bench, protocols)
    sharing = count_sharing(tokenizer, images, _batch(job))
    rate, machine = evaluations[0].value("rate"), _machine(result)
    assert rate is not None  # counted for every tokenizer
    return Observation(
        name=job.observation,
        recipe=job.plan.recipe,
        options=dict(job.plan.options),
        data_set=job.data_set,
        test_set=job.test_set,
        num_steps=int(result["steps"]),
        published_steps=job.published.optim.num_steps,
        batch_size=job.config.optim.batch_size,
        published_batch_size=job.published.optim.batch_size,
        seed=job.config.seed,
        train_seconds=round(float(result["seconds"]), 1),
        settings=settings_of(job.config),
        machine=machine,
        evaluated_on={} if evaluations[0].machine == machine else evaluations[0].machine,
        bits_per_pixel=rate,
        codebook_floats=evaluations[0].codebook_floats,
        segments=None if sharing is None else sharing.to_dict(),
        measurements=tuple(Measurement.of(one) for one in evaluations),
    )


def _images(data: DataConfig, bench: Bench) -> ImageSet:
    from vqkit.data import load_images

    if data not in bench.loaded:
        bench.loaded[data] = load_images(data)
    return bench.loaded[data]


def _machine(result: dict[str, Any]) -> dict[str, Any]:
    return {k: result[k] for k in ("versions", "git_revision", "hardware") if k in result}


def _evaluate(
    tokenizer: ImageTokenizer, images: ImageSet, job: Job, bench: Bench, names: Sequence[str]
) -> tuple[Evaluation, ...]:
    """Measure the same reconstructions under every protocol."""
    from vqkit.evaluation.evaluator import evaluate_under
    from vqkit.metrics import find_protocol

    assert job.config.test_data is not None
    protocols = [find_protocol(name) for name in names]
    found = evaluate_under(
        tokenizer,
        images,
        [(protocol, _networks(protocol, bench)) for protocol in protocols],
        batch_size=_batch(job),
        name=job.observation,
        lossless=bench.lossless.get(job.config.test_data),
    )
    if found[0].lossless is not None:
        bench.lossless[job.config.test_data] = found[0].lossless
    return found


def _networks(protocol: Protocol, bench: Bench) -> Networks:
    from vqkit.evaluation.scoring import Networks, networks_of
    from vqkit.metrics import DEFAULT
    from vqkit.metrics.measures import make_measures

    if not bench.networks:
        return Networks()
    if protocol == DEFAULT:
        measures = make_measures(network_metrics(protocol.name), device=bench.device)
        return Networks(measures=measures)
    other = protocol.fid_reference != "originals"
    return networks_of(protocol, reference=bench.reference if other else None, device=bench.device)


def _batch(job: Job) -> int:
    return max(1, min(64, PIXELS // side_of(job.config.data) ** 2))


@contextmanager
def _claimed(path: Path) -> Iterator[bool]:
    """Claim a row for this process: True, or False if another process has it.

    The claim is a lock, which ends with the process however that ends; file systems and platforms
    without such locks go without.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield True
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:  # no locks on this file system
            pass
        yield True
    finally:
        os.close(descriptor)
