"""`vqkit evaluate`: a run or a tokenizer, measured on held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqkit.cli.analyze_parts import progress_of
from vqkit.cli.console import plain_warnings, say, tell
from vqkit.cli.options import Options, one_name
from vqkit.cli.runs import load, place_of, test_images
from vqkit.config import DataConfig

if TYPE_CHECKING:
    import torch

    from vqkit.data import ImageSet
    from vqkit.evaluation import Evaluation, Rosetta
    from vqkit.evaluation.scoring import Networks
    from vqkit.metrics import Protocol
    from vqkit.models import ImageTokenizer


def run(words: Sequence[str]) -> None:
    """Measure a tokenizer on every image of a set: by default those that its run names for it.

    NAME is the folder of a run, or a tokenizer: a folder or an id on the Hugging Face hub. The
    table is printed, and all numbers go to a file in the folder of the run: `evaluation.json`, or
    `evaluation-<id>.json` for other images than the run names, for tiles, networks and protocols.
    With --rosetta the same reconstructions are measured as several papers do, side by side, into
    `rosetta.json` or `rosetta-<id>.json`.
    """
    name, rest = one_name(words, "run or tokenizer", "vqkit compare takes several")
    given = _options(run.__doc__).parse(rest)
    if name is None:
        raise ValueError("run: none is named; give the folder of a run or of a tokenizer")
    import torch

    from vqkit.data import load_images
    from vqkit.metrics import DEFAULT, find_protocol

    known = find_protocol(given.get("protocol", DEFAULT.name))
    protocol = replace(known, tile=given.get("tile"), halo=given.get("halo"))
    contestant, config = load(name)
    data = test_images(config, given.get("data", {}))
    images = load_images(data)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        tokenizer = contestant.tokenizer.to(given.get("device", default))
    except (RuntimeError, AssertionError) as error:  # torch's way to refuse a device
        raise ValueError(f"device={given['device']!r}: {error}") from error
    tell(f"measuring {contestant.name} on {len(images):,} images of {place_of(data)}")
    found, stamped = _measure(tokenizer, images, protocol, given, contestant.name)
    say(found.table())
    kind = "rosetta" if given["rosetta"] else "evaluation"
    if "json" in given:
        path = Path(given["json"])
    elif config is not None:
        usual = replace(stamped, reference="", num_images=None) == DEFAULT
        same = usual and data == config.test_data
        mark = "" if same else f"-{stamped.id.rpartition(':')[2]}"
        path = Path(name).expanduser() / f"{kind}{mark}.json"
    else:
        return
    found.save(path)
    say(f"wrote {path}")


def _options(about: str | None) -> Options:
    options = Options("evaluate NAME", about)
    options.add("json", str, "file for the numbers; default in the run's folder")
    options.add("protocol", str, "how to measure, such as cvq-looc; default vqkit-default-1")
    options.add_flag("rosetta", "measure under every known protocol, side by side")
    options.add(
        "metrics", str, "networks: fid,kid,precision,recall,inception_score,lpips_vgg,lpips_alex"
    )
    options.add("reference", str, "statistics for FID and its kind, of `vqkit reference`")
    options.add("batch_size", int, "images that go through the model together; default 16")
    options.add("device", str, "cpu, or cuda for a GPU; default the GPU if there is one")
    options.add("tile", int, "pixels of tiles, for images too large to go through whole")
    options.add("halo", int, "pixels computed around a tile; default the receptive field")
    options.add_fields(DataConfig, "data.")
    return options


def _measure(
    tokenizer: ImageTokenizer,
    images: ImageSet,
    protocol: Protocol,
    given: dict[str, Any],
    name: str,
) -> tuple[Evaluation | Rosetta, Protocol]:
    """Return what was found, and the protocol with all that it was measured on."""
    from vqkit.evaluation import rosetta
    from vqkit.evaluation.evaluator import evaluate_under
    from vqkit.training.machine import command_line

    networks = _networks(protocol, given, next(tokenizer.parameters()).device)
    size, show = given.get("batch_size", 16), progress_of(name)
    with plain_warnings():
        if not given["rosetta"]:
            panel = [(protocol, networks)]
            (one,) = evaluate_under(
                tokenizer, images, panel, batch_size=size, name=name, progress=show
            )
            return replace(one, machine=one.machine | {"command": command_line()}), one.protocol
        found = rosetta(
            tokenizer,
            images,
            base=protocol,
            networks=networks,
            reference=given.get("reference"),
            batch_size=size,
            name=name,
            progress=show,
        )
    return found, found.default.protocol


def _check_compared(protocol: Protocol, asked: Sequence[str], given: dict[str, Any]) -> None:
    """Raise `ValueError` unless a number is asked for that is compared with the reference."""
    from vqkit.metrics.measures import KEEPING

    named = f"reference={given['reference']}"
    compared = set(asked) & {*KEEPING, *(() if protocol.fid_resize else ("fid",))}
    if given["rosetta"] or compared or protocol.fid_reference == "files":
        return
    if "fid" in asked or protocol.fid_resize:
        raise ValueError(
            f"{named}: the FID of {protocol.name} compares with the images measured here; leave "
            "it out, add --metrics kid, or choose another protocol"
        )
    raise ValueError(f"{named}: compares nothing; give --metrics fid")


def _networks(protocol: Protocol, given: dict[str, Any], device: torch.device) -> Networks:
    """Load the networks that the protocol names, and those asked for; these must be there."""
    from vqkit.evaluation.scoring import networks_of
    from vqkit.metrics.measures import COMPARING, make_measures

    asked = [one.strip() for one in given["metrics"].split(",")] if "metrics" in given else []
    if "reference" in given:
        _check_compared(protocol, asked, given)
    networks = networks_of(protocol, reference=given.get("reference"), device=device)
    named = {f"lpips_{net}" for net in protocol.lpips.split("+") if net}
    named |= {"fid"} if protocol.fid_resize else set()
    for found in networks.missing:
        if found.name in asked:  # a protocol's own networks may be missing, these may not
            raise ValueError(found.note)
    names = [one for one in asked if one not in named]
    if not names:
        return networks
    measures = make_measures(
        names,
        reference=given.get("reference") if set(COMPARING) & set(names) else None,
        resize=protocol.fid_resize or "clean",
        device=device,
    )
    return replace(networks, measures=(*networks.measures, *measures))
