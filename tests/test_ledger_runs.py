"""`vqkit reproduce` on tiny image sets: runs, what is taken as it is, what cannot run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import struct
import threading

import numpy as np
import pytest

from vqkit.cli import main
from vqkit.cli.reproduce import _protocols
from vqkit.config import to_dict
from vqkit.ledger import runs
from vqkit.ledger.jobs import Length, jobs_of, train_command
from vqkit.ledger.observed import read_observation
from vqkit.ledger.runs import Bench, network_metrics, reproduce
from vqkit.ledger.targets import cells_of

pytestmark = pytest.mark.slow

PROTOCOLS = ("vqkit-default-1", "cvq-looc")


def write_mnist(folder, *, train=8, test=3):
    """Smooth pictures in MNIST's own files."""
    source = np.random.default_rng(0)
    folder.mkdir()
    for name, count in (("train", train), ("t10k", test)):
        coarse = source.integers(0, 256, (count, 7, 7), dtype=np.uint8)
        pixels = coarse.repeat(4, axis=1).repeat(4, axis=2)
        head = bytes((0, 0, 8, 3)) + struct.pack(">3I", count, 28, 28)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
    return folder


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    return write_mnist(tmp_path_factory.mktemp("images") / "mnist")


@pytest.fixture(scope="module")
def trained(mnist, tmp_path_factory):
    """A folder with the runs and observations of two rows; to be copied, not used."""
    folder = tmp_path_factory.mktemp("trained")
    found = reproduce(rows(mnist, 1, 3), bench(folder))
    return folder, found


@pytest.fixture
def done(trained, tmp_path):
    """A copy of those runs."""
    shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


def rows(mnist, *numbers, **length):
    cells = tuple(cell for cell in cells_of("looc-table5") if cell.row in numbers)
    settings = Length(**({"num_steps": 2, "batch_size": 4} | length))
    return jobs_of(cells, "mnist", path=str(mnist), length=settings)


def bench(tmp_path, **changes):
    settings = {"out": tmp_path / "runs", "ledger": tmp_path / "ledger", "protocols": PROTOCOLS}
    return Bench(**(settings | changes))


def test_rows_are_trained_and_measured(trained, mnist):
    folder, (whole, looc) = trained
    assert (whole.name, looc.name) == ("vq_vae_1024x128_mnist_2x4", "looc_8x4_mnist_2x4")
    assert (whole.bits_per_pixel, looc.bits_per_pixel) == (0.625, 6.0)
    assert whole.segments is None
    assert looc.segments["num_segments"] == 32
    assert looc.length == "2 of 234,000 steps, batch 4 (published 128), seed 42"
    assert [one.protocol_name for one in looc.measurements] == list(PROTOCOLS)
    assert looc.measurements[0].num_images == 3
    psnr = [one.values["psnr"] for one in looc.measurements]
    assert psnr[0] != psnr[1]  # JPEG files against pixels
    assert str(mnist) not in json.dumps(looc.to_dict()), "no place of this machine"
    assert read_observation(folder / "ledger" / f"{looc.name}.json") == looc


def test_observed_rows_are_taken_as_they_are(done, mnist):
    told: list[str] = []
    jobs = rows(mnist, 1, 3)
    again = reproduce(jobs, bench(done, out=done / "elsewhere", tell=told.append))
    assert [one.name for one in again] == [job.observation for job in jobs]
    assert all("was observed before" in line for line in told)
    assert not (done / "elsewhere" / jobs[0].name).exists(), "nothing was trained"


def test_an_observation_that_lacks_a_protocol_is_measured_again(done, mnist):
    told: list[str] = []
    jobs = rows(mnist, 3)
    path = done / "ledger" / f"{jobs[0].observation}.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    del values["measurements"][1]
    del values["settings"]["optim"]["deterministic"]  # as if it were newer than the file
    path.write_text(json.dumps(values), encoding="utf-8")
    (found,) = reproduce(jobs, bench(done, tell=told.append))
    assert [one.protocol_name for one in found.measurements] == list(PROTOCOLS)
    assert "was trained before" in told[0]


def changed(path, protocol, **numbers):
    """Give a measurement of a file numbers, as networks would."""
    values = json.loads(path.read_text(encoding="utf-8"))
    (found,) = (one for one in values["measurements"] if one["protocol"]["name"] == protocol)
    found["values"] |= numbers
    path.write_text(json.dumps(values), encoding="utf-8")
    return found


def test_measurements_under_other_protocols_stay(done, mnist):
    (job,) = rows(mnist, 3)
    path = done / "ledger" / f"{job.observation}.json"
    known = changed(path, "cvq-looc", fid=7.0)
    other = bench(done, protocols=("vqkit-default-1", "simvq"))
    (found,) = reproduce([job], other)
    assert [one.protocol_name for one in found.measurements] == [*PROTOCOLS, "simvq"]
    assert found.measurement("cvq-looc").values == known["values"]
    assert read_observation(path) == found


def test_a_number_is_never_replaced_by_none(done, mnist):
    (job,) = rows(mnist, 3)
    path = done / "ledger" / f"{job.observation}.json"
    known = changed(path, "cvq-looc", fid=7.0)
    shutil.rmtree(done / "runs" / job.name)  # trained anew, so that everything is measured anew
    told: list[str] = []
    (found,) = reproduce([job], bench(done, protocols=("simvq",), tell=told.append))
    assert [one.protocol_name for one in found.measurements] == [*PROTOCOLS, "simvq"]
    assert found.measurement("cvq-looc").values == known["values"]
    assert "the former measurement under cvq-looc stays, with its fid" in " ".join(told)


def test_an_observation_with_other_settings_is_refused(done, mnist):
    (job,) = rows(mnist, 3)
    path = done / "ledger" / f"{job.observation}.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["settings"]["optim"]["lr"] = 1.0
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ValueError, match="observed with other settings; delete it"):
        reproduce([job], bench(done))


def test_rows_of_another_process_are_left_to_it(done, mnist, monkeypatch):
    pytest.importorskip("fcntl")
    monkeypatch.setattr(runs, "POLL", 0.01)
    jobs = rows(mnist, 1, 3)
    waiting, told = threading.Event(), []

    def tell(line):
        told.append(line)
        if line.startswith("waiting"):
            waiting.set()

    work = bench(done, tell=tell)
    results = []
    with runs._claimed(work.out / ".claims" / jobs[0].observation) as mine:
        assert mine
        thread = threading.Thread(target=lambda: results.append(reproduce(jobs, work)))
        # Claims are locks of open files, so that another one in this process counts as foreign.
        thread.start()
        assert waiting.wait(60)
    thread.join(60)
    assert [one.name for one in results[0]] == [job.observation for job in jobs]
    assert told[0].startswith(jobs[1].observation), "the free row went first"


def test_networks_that_a_protocol_asks_for():
    assert network_metrics("cvq-looc") == ("lpips_vgg", "fid")
    assert network_metrics("vqkit-default-1") == ("fid", "lpips_vgg", "lpips_alex")


# ---------------------------------------------------------------- the command


def words(mnist, tmp_path):
    places = ["--out", str(tmp_path / "runs"), "--ledger", str(tmp_path / "ledger")]
    return ["--path", str(mnist), "--num_steps", "2", "--batch_size", "4", *places]


def test_command_runs_lists_and_writes_the_page(done, mnist, capsys):
    page = done / "ledger.md"
    given = ["--data", "mnist", "--rows", "3", *words(mnist, done), "--page", str(page)]
    assert main(["reproduce", "looc-table5", *given]) == 0
    printed = capsys.readouterr().out
    assert ": 6 bits per pixel; vqkit-default-1:" in printed
    assert "(2 of 234,000 steps, batch 4 (published 128), seed 42)" in printed
    shown = "`looc_8x4_mnist_2x4`: 6 bits per pixel, 2 of 234,000 steps"
    assert shown in page.read_text(encoding="utf-8")
    assert main(["reproduce", "--list", "--ledger", str(done / "ledger")]) == 0
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert lines["looc-table5"][1:3] == ["150", "6"]  # PSNR, SSIM and l1 of two rows
    assert lines["all"][1] == "1213"


def test_a_list_without_observations_says_so(tmp_path, capsys):
    assert main(["reproduce", "--list", "--ledger", str(tmp_path / "typo")]) == 0
    assert "typo: there is no such folder, so that nothing counts" in capsys.readouterr().err


def test_a_reference_that_no_row_is_compared_with_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words in (["vqgan-lc-table9"], ["looc-table5", "--networks"]):
        assert main(["reproduce", *words, "--reference", "x"]) == 2
        assert "reference=x: no row is compared with it" in capsys.readouterr().err


def test_command_says_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "dual-table3"]) == 2
    said = capsys.readouterr().err
    assert "missing: data set ms-coco (looked in data/ms_coco/train2014" in said
    assert re.search(r"it takes, for 2 row\(s\): about 7\d0 GPU hours by arithmetic", said)
    assert "vqkit train dual_ms_coco --num_codes 1024 --path data/ms_coco --name dual_1024" in said
    assert main(["reproduce", "vqgan-lc-table4", "--rows", "1", "8"]) == 2
    said = capsys.readouterr().err
    assert "not run: vqgan-lc/4/1: RQ-Transformer is not in vqkit" in said
    assert "not run: vqgan-lc/4/8: images drawn by GPT-404M on these tokens" in said
    assert "  vqkit train lc_vqgan_fc --data_set imagenet" in said
    assert not any(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize(
    ("table", "data_set", "settings"),
    [
        ("looc-table5", "mnist", {"length": Length(num_steps=600, seed=7), "path": "a b"}),
        ("looc-table5", "cifar10-jpeg", {}),
        ("looc-table12", "celeba", {"test_path": "elsewhere"}),
        ("vqgan-lc-table9", "imagenet", {}),
        ("dual-table2", "ms-coco", {"length": Length(seed=3, batch_size=8)}),
    ],
)
def test_printed_commands_train_exactly_the_job(table, data_set, settings, capsys):
    job = jobs_of(cells_of(table), data_set, **settings)[-1]
    words = shlex.split(train_command(job))
    assert main([*words[1:], "--print_config"]) == 0
    expected = json.loads(json.dumps(to_dict(job.config)))
    assert json.loads(capsys.readouterr().out) == expected


def test_commands_have_seed_places_and_the_implied_batch(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = ["--rows", "3", "--num_steps", "6", "--seed", "7", "--path", "there"]
    assert main(["reproduce", "looc-table5", *given, "--test_path", "elsewhere"]) == 2
    said = capsys.readouterr().err
    assert "--path there --num_steps 6 --batch_size 128 --name " in said
    assert "--test_data.path elsewhere " in said
    assert "--seed 7 --out runs/ledger/looc_8x4_mnist_6x128_seed7" in said


@pytest.mark.parametrize(
    ("table", "names"),
    [
        ("dual-table1", ["vqkit-default-1", "vqct", "vqct-dual"]),
        ("looc-table6", ["vqkit-default-1"]),
        ("looc-table5", ["vqkit-default-1", "cvq-looc"]),
    ],
)
def test_rows_are_measured_as_their_cells_were(table, names):
    found = cells_of(table)
    assert sorted(_protocols(jobs_of(found, found[0].dataset))) == sorted(names)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "table: none is named"),
        (["looc-table55"], "table='looc-table55': unknown; did you mean"),
        (["looc-table5", "--rows", "11"], r"rows=\[11\]: no such row; known are 1 to 10"),
        (["looc-table5", "--data", "ffhq"], "data='ffhq': these rows have mnist, cifar10"),
        (["looc-table5", "--num_steps", "0"], "num_steps=0: must be at least 1"),
    ],
)
def test_command_refuses(given, message, capsys):
    assert main(["reproduce", *given]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_fresh_begins_anew(done, mnist, capsys):
    given = ["--data", "mnist", "--rows", "3", *words(mnist, done)]
    assert main(["reproduce", "looc-table5", *given, "--fresh"]) == 0
    said = capsys.readouterr().err
    assert "was trained before" not in said
    assert "was observed before" not in said
    assert "run 1 of 1: looc_8x4_mnist_2x4, step 2 of 2" in said
