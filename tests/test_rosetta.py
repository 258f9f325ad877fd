"""One pass over the same reconstructions under many protocols, with networks and without."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
import torch
from test_evaluation import make_images, make_tokenizer

from vqkit.cli import main
from vqkit.config import DataConfig
from vqkit.data import load_images
from vqkit.evaluation import Evaluation, evaluate, rosetta
from vqkit.evaluation.evaluator import evaluate_under
from vqkit.evaluation.scoring import Networks, networks_of
from vqkit.metrics import DEFAULT, PROTOCOLS, ReconstructionScores
from vqkit.metrics.lpips import LPIPS
from vqkit.metrics.measures import Found
from vqkit.metrics.output_lpips import OutputLpips
from vqkit.metrics.pixels import outputs_of, side_bytes
from vqkit.metrics.reduction import sum_over_processes

SIZES = [(20, 24)] * 7


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    return make_images(folder, SIZES, channels=3)


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """No weights anywhere."""
    for name in ("XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "empty"))
    for name in [name for name in os.environ if name.startswith("VQKIT_WEIGHTS")]:
        monkeypatch.delenv(name)


class Brightness:
    """A set measure whose number is easy to check: mean bytes of both sides."""

    def __init__(self):
        self.totals = torch.zeros(3, dtype=torch.float64)

    def update(self, images, originals):
        assert images.dtype == originals.dtype == torch.uint8
        values = [images.double().sum(), originals.double().sum(), images.numel()]
        self.totals += torch.tensor(values, dtype=torch.float64)

    def reduce(self):
        total = Brightness()
        total.totals = sum_over_processes(self.totals)
        return total

    def results(self):
        return (Found(name="fid", value=float(self.totals[0] / self.totals[2]), unit="",
                      num_images=7, spread=0.5, note="of a test"),)  # fmt: skip

    def facts(self):
        return {"brightness.version": 1}


def test_every_column_is_that_of_its_own_pass(images, bare):
    tokenizer = make_tokenizer(channels=3)
    found = rosetta(tokenizer, images, batch_size=3)
    assert [one.protocol.name for one in found.evaluations] == list(PROTOCOLS)
    originals = torch.stack([images.image(index) for index in range(7)])
    rebuilt = torch.cat([tokenizer.reconstruct(part) for part in originals.split(3)])
    for name, protocol in PROTOCOLS.items():
        scores = ReconstructionScores(protocol)
        scores.update(rebuilt, originals)
        for metric in ("psnr", "ssim", "l1", "l2"):
            assert found.metric(metric, name).value == pytest.approx(scores.mean(metric)), name
        assert found.metric("psnr", name).num_images == 7
    alone = evaluate(tokenizer, images, batch_size=3)
    assert found.default.metrics == alone.metrics
    assert found.default.protocol == alone.protocol
    assert len({one.protocol.id for one in found.evaluations}) == len(PROTOCOLS)
    assert len({found.metric("psnr", name).value for name in PROTOCOLS}) > 4


def test_deviations_and_the_table(images, bare):
    found = rosetta(make_tokenizer(channels=3), images)
    default = found.default.value("psnr")
    for name in PROTOCOLS:
        expected = found.metric("psnr", name).value - default
        assert found.deviation("psnr", name) == pytest.approx(expected)
    table = found.table()
    lines = table.splitlines()
    assert lines[0].startswith("| tokenizer")
    for number, (name, protocol) in enumerate(PROTOCOLS.items(), start=1):
        assert f"{name} [{number}]" in lines[0]
        assert f"[{number}] {name}:" in table
        assert protocol.describe() in table
    psnr = next(line for line in lines if line.startswith("| PSNR"))
    assert f"({found.deviation('psnr', 'vqgan-lc'):+.2f})" in psnr
    assert psnr.count("(") == len(PROTOCOLS) - 1
    with pytest.raises(ValueError, match="protocol='mine': not measured"):
        found.metric("psnr", "mine")


def test_missing_weights_leave_numbers_out_and_say_why(images, bare):
    found = rosetta(make_tokenizer(channels=3), images)
    for name, metric in (("cvq-looc", "lpips_vgg"), ("vqgan-lc", "lpips_alex"), ("simvq", "fid")):
        cell = found.metric(metric, name)
        assert cell.value is None
        assert cell.note
        assert cell.note in found.table()
    assert "vgg16" in found.metric("lpips_vgg", "cvq-looc").note
    assert "reference" in found.metric("fid", "vqgan-lc").note
    assert found.metric("fid", DEFAULT.name) is None
    assert found.deviation("fid", "simvq") is None


def test_json_holds_the_table(images, bare, tmp_path):
    found = rosetta(make_tokenizer(channels=3), images)
    found.save(tmp_path / "rosetta.json")
    values = json.loads((tmp_path / "rosetta.json").read_text())
    assert values["format"] == "vqkit-rosetta-1"
    assert [one["name"] for one in values["protocols"]] == list(PROTOCOLS)
    assert values["protocols"][0]["differences"] == {}
    assert values["protocols"][1]["differences"]["jpeg"] == 75
    rows = {row["metric"]: row["cells"] for row in values["rows"]}
    assert rows["psnr"]["simvq"]["value"] == found.metric("psnr", "simvq").value
    assert rows["psnr"]["simvq"]["deviation"] == found.deviation("psnr", "simvq")
    assert rows["lpips_vgg"][DEFAULT.name] is None
    assert Evaluation.from_dict(values["evaluation"]).metrics == found.default.metrics


def test_tiles_hold_for_all(images, bare):
    base = replace(DEFAULT, tile=16, halo=0)
    found = rosetta(make_tokenizer(channels=3), images, base=base)
    assert {(one.protocol.tile, one.protocol.halo) for one in found.evaluations} == {(16, 0)}
    panel = [(DEFAULT, Networks()), (base, Networks())]
    with pytest.raises(ValueError, match="same tiles"):
        evaluate_under(make_tokenizer(channels=3), images, panel)
    with pytest.raises(ValueError, match="another name"):
        rosetta(make_tokenizer(channels=3), images, protocols=[PROTOCOLS["simvq"]] * 2)


# Networks


def test_measures_enter_metrics_and_identity(images):
    tokenizer = make_tokenizer(channels=3)
    plain = evaluate(tokenizer, images)
    found = evaluate(tokenizer, images, measures=[Brightness()])
    originals = torch.stack([images.image(index) for index in range(7)])
    rebuilt = side_bytes(tokenizer.reconstruct(originals), DEFAULT)
    assert found.value("fid") == pytest.approx(rebuilt.double().mean().item(), rel=1e-6)
    assert found.metric("fid").protocol == found.protocol.id != plain.protocol.id
    assert json.loads(found.protocol.measures) == {"brightness.version": 1}
    assert found.metrics[: len(plain.metrics)] == tuple(
        replace(metric, protocol=found.protocol.id) for metric in plain.metrics
    )
    again = Evaluation.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again.metric("fid") == found.metric("fid")
    assert "FID: standard deviation 0.5; of a test" in found.table()


def test_measures_see_the_bytes_of_their_protocol(images):
    tokenizer = make_tokenizer(channels=3)
    originals = torch.stack([images.image(index) for index in range(7)])
    rebuilt = tokenizer.reconstruct(originals)
    for name, rounding in (("cvq-looc", "truncate"), ("vqgan-lc", "truncate"), ("simvq", "round")):
        measure = Brightness()
        protocol = PROTOCOLS[name]
        evaluate(tokenizer, images, protocol=protocol, measures=[measure])
        seen = replace(protocol, rounding=rounding)
        expected = [
            side_bytes(rebuilt, seen).double().sum().item(),
            side_bytes(originals, seen, original=True).double().sum().item(),
        ]
        assert measure.totals[:2].tolist() == pytest.approx(expected, rel=1e-6), name


def test_lpips_of_outputs_sees_what_the_papers_gave():
    network = LPIPS.random("alex")
    generator = torch.Generator().manual_seed(0)
    originals = torch.randint(0, 256, (3, 3, 32, 32), generator=generator, dtype=torch.uint8)
    images = outputs_of(originals, "numpy") * 1.2 + 0.1
    x, y = images, outputs_of(originals, "numpy")
    for seen, pair in (
        ("clamped", (x.clamp(-1, 1), y)),
        ("taken_for_0..1", (2 * x - 1, 2 * y - 1)),
    ):
        measure = OutputLpips(network, seen)
        measure.update(images[:2], originals[:2])
        measure.update(images[2:], originals[2:])
        measure.update(images[..., :8, :8], originals[..., :8, :8])  # below 31 pixels
        (found,) = measure.reduce().results()
        assert found.name == "lpips_alex"
        assert found.value == pytest.approx(network(*pair).mean().item(), rel=1e-5)
        assert found.num_images == 3
        assert "3 images below 31×31 pixels left out" in found.note
        assert measure.facts()["lpips_alex.seen"] == seen


class Unweighted(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net


def test_networks_follow_the_protocol(monkeypatch):
    made = []

    def make(name, **settings):
        made.append(
            (name, settings["resize"] if name == "fid" else None, settings.get("reference"))
        )
        return Brightness()

    monkeypatch.setattr("vqkit.evaluation.scoring.make_measure", make)
    monkeypatch.setattr("vqkit.metrics.output_lpips.load_lpips", Unweighted)
    networks = {name: networks_of(one, reference="ref") for name, one in PROTOCOLS.items()}
    assert made == [
        ("lpips_vgg", None, None),
        ("fid", "cvq", None),
        ("fid", "clean", "ref"),  # VQGAN-LC's files; the others compare with their originals
        ("fid", "legacy", None),
        ("fid", "legacy", None),
        ("fid", "adm", None),
        ("fid", "legacy", None),
    ]
    assert [one.name for one in networks["simvq"].outputs] == ["lpips_alex", "lpips_vgg"]
    assert networks["vqgan-lc"].outputs[0].seen == "taken_for_0..1"
    assert not any(one.missing for one in networks.values())
    assert networks[DEFAULT.name] == Networks()


# Several processes


def measure_share(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    images = load_images(DataConfig(source="folder", path=f"{folder}/images", channels=3))
    tokenizer = make_tokenizer(channels=3)
    simvq = replace(PROTOCOLS["simvq"], batch=3)  # the second group spans both shares
    results = []
    for share in ((0, 1), (rank, 2)):
        panel = [(DEFAULT, Networks(measures=(Brightness(),))), (simvq, Networks())]
        results.append(evaluate_under(tokenizer, images, panel, batch_size=2, share=share))
    for whole, both in zip(*results, strict=True):
        assert whole.protocol == both.protocol
        for a, b in zip(whole.metrics, both.metrics, strict=True):
            assert a.value == pytest.approx(b.value, rel=1e-12), a.name
            assert a.num_images == b.num_images
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_measure_as_one(images, tmp_path):
    torch.multiprocessing.spawn(measure_share, args=(tmp_path,), nprocs=2)


# Command line


def test_command(images, bare, tmp_path, capsys):
    folder = tmp_path / "tokenizer"
    make_tokenizer(channels=3).save_pretrained(folder)
    words = ["evaluate", str(folder), "--data.path", str(tmp_path / "images")]
    words += ["--data.source", "folder", "--data.channels", "3"]
    out = tmp_path / "rosetta.json"
    assert main([*words, "--rosetta", "--json", str(out)]) == 0
    assert "vqct-dual [5]" in capsys.readouterr().out
    assert json.loads(out.read_text())["format"] == "vqkit-rosetta-1"

    one = tmp_path / "one.json"
    assert main([*words, "--protocol", "llamagen", "--json", str(one)]) == 0
    loaded = Evaluation.load(one)
    assert loaded.protocol.name == "llamagen"
    assert loaded.value("fid") is None
    assert "range 2" in capsys.readouterr().out

    for extra, message in (
        (["--protocol", "looc"], "did you mean 'cvq-looc'"),
        (["--metrics", "fidd"], "expected one of fid"),
        (["--metrics", "lpips_vgg"], "vgg16-397923af.pth"),
        (["--protocol", "cvq-looc", "--metrics", "lpips_vgg"], "vgg16-397923af.pth"),
        (["--protocol", "cvq-looc", "--metrics", " fid"], "pt_inception-2015"),
        (["--protocol", "vqgan-lc", "--metrics", "fid"], "reference: vqgan-lc compares"),
        (["--reference", "x"], "compares nothing"),
        (["--reference", "x", "--metrics", "lpips_vgg"], "compares nothing"),
        (["--reference", "x", "--protocol", "llamagen"], "the images measured here"),
        (["--reference", "x", "--protocol", "cvq-looc", "--metrics", "fid"], "measured here"),
        (["--reference", "x", "--metrics", "kid"], "reference=x: is no file"),
    ):
        assert main([*words, *extra]) == 2
        assert message in capsys.readouterr().err
