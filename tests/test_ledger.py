"""The ledger without a run: plans of all printed rows, entries, sharing of codes, the page."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from analysis_models import make_images, make_tokenizer

from vqkit.ledger import PAPERS, cell, cells, tables
from vqkit.ledger.costs import RATE, gpu_hours, hours_in_words
from vqkit.ledger.entries import STATUSES, entries
from vqkit.ledger.jobs import Length, data_sets_of, jobs_of, obstacles
from vqkit.ledger.observed import (
    Measurement,
    Observation,
    identity_of,
    read_observations,
    write_observation,
)
from vqkit.ledger.page import write_page
from vqkit.ledger.plans import needs_beside_a_tokenizer, plan_of
from vqkit.ledger.segments import count_sharing, sharing_of
from vqkit.ledger.targets import cells_of, target_names
from vqkit.recipes import PUBLISHED, TABLES, looc_table, published, recipe


def observation(key, protocols=(("cvq-looc", {}),), **changes):
    """An observation of the row of a cell; `protocols` are names and values."""
    plan = plan_of(cell(key))
    measurements = tuple(
        Measurement(
            protocol={"id": f"{name}:0", "name": name}, num_images=6, num_tokens=12, values=values
        )
        for name, values in protocols
    )
    values = {
        "name": "some_run",
        "recipe": plan.recipe,
        "options": dict(plan.options),
        "data_set": plan.data_set,
        "test_set": plan.test_set,
        "num_steps": 600,
        "published_steps": 234_000,
        "batch_size": 128,
        "published_batch_size": 128,
        "seed": 42,
        "train_seconds": 1.5,
        "settings": {},
        "machine": {"hardware": {"device": "cpu", "processor": "P", "threads": 1}},
        "bits_per_pixel": 10.0,
        "codebook_floats": 128,
        "measurements": measurements,
    }
    return Observation(**(values | changes))


@pytest.fixture(scope="module")
def nothing_observed():
    """The ledger without any run; building it counts the operations of all networks."""
    return entries(())


def entry(key, *observations):
    return next(one for one in entries(observations) if one.cell.key == key)


# ---------------------------------------------------------------- plans and jobs


def test_every_cell_has_a_plan_or_a_reason():
    reasons = Counter()
    for one in cells():
        plan = plan_of(one)
        assert bool(plan.recipe) != bool(plan.lacking), one.key
        reasons[plan.lacking or "recipe"] += 1
    assert reasons["recipe"] > 1000
    assert reasons["HVQ-VAE, a stack of autoencoders, is not in vqkit"] == 18


def test_jobs_of_all_tables_have_names_of_their_own():
    plans = {}
    for target in target_names():
        found = cells_of(target)
        for data_set in data_sets_of(found):
            for job in jobs_of(found, data_set):
                known = plans.setdefault(job.observation, (identity_of(job.plan), job.data_set))
                assert known == (identity_of(job.plan), job.data_set)
                assert job.config.optim == job.published.optim
                assert f"vqkit train {job.plan.recipe} " in job.plan.train_command
    assert len(plans) > 150


@pytest.mark.parametrize("table", TABLES)
def test_jobs_of_small_tables_are_those_of_the_recipes(table):
    found = jobs_of(cells_of(f"looc-table{table}"), "mnist", length=Length(num_steps=600))
    theirs = [run for run in looc_table(table, num_steps=600) if run.data.source == "mnist"]
    assert [job.config.quantizer for job in found] == [run.quantizer for run in theirs]
    assert [job.config.optim for job in found] == [run.optim for run in theirs]


def test_rows_that_several_tables_print_are_one_run():
    shared = [plan_of(cell(f"looc/{row}/mnist/psnr")) for row in ("1/7", "3/3", "5/8")]
    assert shared[0] == shared[1] == shared[2]
    together = sum((cells_of(f"looc-table{number}") for number in (1, 3, 4, 5, 8)), ())
    jobs = jobs_of(together, "mnist", length=Length(num_steps=600))
    assert len(jobs) == 22
    by_name = {job.name: len(job.cells) for job in jobs}
    assert by_name["looc_256x4_mnist_600x128"] == 4 + 5 + 5 + 5  # Tables 1, 3, 5, 8
    assert jobs[0].config.log.checkpoint_every == 200


def test_numbers_of_the_recipes_are_those_of_the_ledger():
    printed = {}
    for table in ("8", "1", "3", "4", "5"):  # Table 8 has fewer digits than those after it
        for one in (one for one in cells() if one.key.startswith(f"looc/{table}/")):
            preset = {"vqvae": "vq_vae", "sq-vae": "sq_vae", "cvq-vae": "cvq"}.get(one.system)
            size = one.settings["codebook_size"], one.settings["codevector_dim"]
            row = (preset or one.system, *size)
            printed.setdefault((row, one.dataset.replace("-", "_")), {})[one.metric] = one.value
    for row in PUBLISHED:
        for data_set in PUBLISHED[row]:
            assert published(row, data_set) == printed[row, data_set], row


def test_options_of_single_rows():
    def plan(key):
        return plan_of(cell(key))

    assert plan("looc/6/4/ffhq/psnr").options == {"num_codes": 256, "beta": 1}
    assert plan("looc/6/5/ffhq/psnr") == plan("looc/2/7/ffhq/psnr")
    assert plan("looc/7/2/ffhq/utilization").options == {"num_codes": 1024, "update": "none"}
    assert plan("dual/2/4/ms-coco/psnr").options == {"row": "iv"}
    assert plan("looc/12/1/celeba/psnr").data_set == "ffhq"
    assert plan("looc/12/1/celeba/psnr").test_set == "celeba"
    lc = plan("vqgan-lc/8/4/imagenet/psnr").options
    assert lc == {"codebook": "data/codebooks/ffhq_clip-vit-l_100000.safetensors"}
    command = plan("vqgan-lc/9/1/imagenet/psnr").train_command
    assert command.endswith("--projector false --path data/imagenet")
    assert "LDM" in needs_beside_a_tokenizer(cell("vqgan-lc/1/1/imagenet/gfid"))
    assert needs_beside_a_tokenizer(cell("vqgan-lc/1/1/imagenet/rfid")) == ""


def test_jobs_on_other_images(tmp_path):
    row = cells_of("looc-figure7")
    job = jobs_of(row, "mnist", path=str(tmp_path), length=Length(num_steps=5, seed=7))[0]
    assert (job.name, job.cells) == ("looc_256x4_mnist_5x128_seed7", ())
    assert obstacles(job, have_gpu=False) == []
    stand_in = jobs_of(row, "cifar10-jpeg")[0]
    assert stand_in.name == "looc_256x4_cifar10-jpeg_195000x128"
    assert stand_in.config.data.path == "data/cifar10-jpeg"
    assert [one.key for one in stand_in.cells] == [one.key for one in row]
    with pytest.raises(ValueError, match=r"data='ffhq': these rows have cifar10, mnist"):
        jobs_of(row, "ffhq")
    with pytest.raises(ValueError, match="num_steps=0: must be at least 1"):
        Length(num_steps=0)


def test_obstacles_name_data_codebook_and_gpu(nothing_observed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = jobs_of(cells_of("vqgan-lc-table7"), "imagenet")[0]
    found = " ".join(obstacles(job, have_gpu=False))
    assert "data set imagenet (looked in data/imagenet/train" in found
    assert "imagenet_clip-vit-l_1000.safetensors" in found
    assert "a GPU (about" in found
    assert "a GPU" not in " ".join(obstacles(job, have_gpu=True))


def test_unknown_tables_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'looc-table5'"):
        cells_of("looc-tabel5")


def test_hours_are_arithmetic(nothing_observed):
    config = recipe("dual_vq_vae")(data_set="cub_200")
    longer = replace(config, optim=replace(config.optim, num_steps=2 * config.optim.num_steps))
    assert gpu_hours(longer) == pytest.approx(2 * gpu_hours(config))
    # Without LPIPS and discriminator: three times the networks' forward pass, 32 images a step.
    forward = gpu_hours(config) * 3600 / config.optim.num_steps * RATE / 32 / 3
    assert 1e11 < forward < 1e12  # VQGAN f16 at 256 x 256: some hundred billion operations
    small = recipe("looc_mnist")()
    assert gpu_hours(small) == pytest.approx(234_000 * 0.005 / 3600)  # the least step
    assert hours_in_words(1234.0) == "about 1,200 GPU hours"
    assert hours_in_words(0.325) == "about 0.3 GPU hours"
    assert hours_in_words(4e-05) == "less than 0.01 GPU hours"


# ---------------------------------------------------------------- sharing of codes


def test_sharing_against_a_plain_count():
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 2, (5, 6), generator=generator)
    counts[:, 5] = 0  # nobody draws code 5
    counts[4] = torch.tensor([7, 1, 0, 0, 0, 0])  # a segment that hardly uses anything
    counts[0] = torch.tensor([1, 1, 1, 1, 1, 0])
    found = sharing_of(counts)
    used = [{code for code in range(6) if counts[s, code]} for s in range(5)]
    assert found.usage == pytest.approx([len(one) / 6 for one in used])
    assert found.segments_below_90pct == sum(len(one) <= 0.9 * 6 for one in used)
    sharers = [sum(code in one for one in used) for code in range(6)]
    assert found.sharing_segments_min == min(sharers) == 0
    most = max(n for n in range(6) if sum(s >= n for s in sharers) > 3)
    assert found.sharing_segments_most == most


def test_subpixels_are_no_segments_of_their_own(tmp_path):
    images = make_images(tmp_path)
    codes = {"num_codes": 7, "dim": 4}
    looc = count_sharing(make_tokenizer("looc", **codes, num_segments=3, beta=2), images, 2)
    assert (looc.num_segments, looc.num_codes, len(looc.usage)) == (3, 7, 3)
    whole = make_tokenizer("looc", **codes, num_segments=1, beta=2)
    assert count_sharing(whole, images, 2) is None
    assert count_sharing(make_tokenizer("pq", **codes, num_segments=3), images, 2) is None


# ---------------------------------------------------------------- entries


def test_every_cell_has_an_entry_and_says_what_it_lacks(nothing_observed):
    found = nothing_observed
    assert [one.cell.key for one in found] == [one.key for one in cells()]
    assert {one.status for one in found} == {"quoted", "missing", "blank"}
    for one in found:
        assert one.status in STATUSES
        assert bool(one.missing) == (one.status != "blank"), one.cell.key
        assert one.status != "blank" or one.cell.value is None
    missing = entry("vqgan-lc/7/3/imagenet/rfid").missing
    assert missing[0] == "data set ImageNet-1k"
    assert "codebook data/codebooks/imagenet_clip-vit-l_50000.safetensors" in missing
    assert "weights vgg16-397923af.pth to train" in missing
    assert "weights pt_inception-2015-12-05-6726825d.pth to measure it" in missing
    assert any("GPU hours" in need for need in missing)
    assert entry("dual/1/5/ade20k/psnr").status == "quoted"
    assert entry("dual/1/5/ade20k/psnr").missing == ("VQCT is not in vqkit",)
    assert entry("dual/1/5/ade20k/psnr").command == ""
    command = "vqkit reproduce looc-table5 --data mnist --rows 5"
    assert entry("looc/5/5/mnist/psnr").command == command


def test_observed_cells_carry_protocol_length_and_difference():
    values = {"psnr": 20.15, "ssim": 0.9, "fid": None}
    run = observation("looc/5/5/mnist/psnr", (("vqkit-default-1", values), ("cvq-looc", values)))
    found = entry("looc/5/5/mnist/psnr", run)
    assert (found.status, found.missing) == ("observed", ())
    assert [one.protocol for one in found.seen] == ["cvq-looc:0", "vqkit-default-1:0"]
    assert found.seen[0].difference == pytest.approx(20.15 - 35.15)
    assert found.seen[0].length == "600 of 234,000 steps, batch 128, seed 42"
    assert found.seen[0].hardware == "CPU, 1 thread(s), P"
    assert entry("looc/1/6/mnist/psnr", run).status == "observed"  # the same run
    lacking = entry("looc/5/5/mnist/rfid", run)
    assert lacking.status == "missing"
    assert lacking.missing == ("weights pt_inception-2015-12-05-6726825d.pth to measure it",)
    assert entry("looc/5/5/cifar10/psnr", run).status == "missing"


def test_longest_run_first_and_other_batches_are_said():
    short = observation("looc/5/5/mnist/psnr", (("cvq-looc", {"psnr": 20.0}),))
    long = replace(
        short,
        name="long",
        num_steps=234_000,
        published_batch_size=1024,
        measurements=(replace(short.measurements[0], values={"psnr": 35.0}),),
    )
    found = entry("looc/5/5/mnist/psnr", short, long)
    assert [one.value for one in found.seen] == [35.0, 20.0]
    assert found.seen[0].length == "234,000 steps, batch 128 (published 1,024), seed 42"


def test_stand_in_pixels_give_no_difference():
    values = (("cvq-looc", {"psnr": 30.0}),)
    run = observation("looc/5/5/cifar10/psnr", values, data_set="cifar10-jpeg")
    run = replace(run, test_set="cifar10-jpeg")
    found = entry("looc/5/5/cifar10/psnr", run)
    assert found.status == "other pixels"
    assert found.seen[0].difference is None
    assert found.seen[0].data_set == "cifar10-jpeg"
    assert found.missing == ("data set CIFAR-10", "about 0.3 GPU hours")
    assert entry("looc/5/5/cifar10/rfid", run).missing[0] == "data set CIFAR-10"


def test_only_the_protocol_of_the_cell_has_a_difference():
    values = {"psnr": 22.0, "l1": 0.1}
    names = ("vqgan-lc", "vqkit-default-1", "vqct-dual", "vqct")

    def differences(key):
        run = observation(key, tuple((name, values) for name in names))
        return [(one.protocol[:-2], one.difference is not None) for one in entry(key, run).seen]

    others = [("vqkit-default-1", False), ("vqgan-lc", False)]
    own = [("vqct-dual", True), *others, ("vqct", False)]
    assert differences("dual/1/6/ade20k/psnr") == own
    assert cell("dual/1/2/ade20k/psnr").quoted
    assert differences("dual/1/2/ade20k/psnr") == [("vqct", True), *others, ("vqct-dual", False)]
    unknown = differences("looc/2/7/ffhq/psnr")
    assert unknown[0] == ("vqkit-default-1", False)
    assert not any(different for _, different in unknown)
    run = observation("looc/2/7/ffhq/psnr", (("vqkit-default-1", values),))
    found = entry("looc/2/7/ffhq/psnr", run)
    assert (found.status, found.seen[0].note) == ("observed", "the paper's protocol is not known")


def test_usage_over_other_images_has_no_difference(tmp_path):
    cell_ = cell("vqgan-lc/2/20/imagenet/utilization")
    values = {"usage": 0.9996, "psnr": 20.0}
    run = observation(cell_.key, (("vqgan-lc", values), ("vqkit-default-1", values)))
    found = entry(cell_.key, run)
    assert [(one.value, one.difference) for one in found.seen] == [(pytest.approx(99.96), None)] * 2
    assert found.status == "observed"
    psnr = entry(cell_.key.replace("utilization", "psnr"), run)
    assert psnr.seen[0].difference is not None
    page, _ = write_page(tmp_path / "ledger.md", [run])
    assert "the paper counts all training images of an epoch" in page.read_text(encoding="utf-8")


def test_units_and_counts_of_segments():
    counts = {"segments_below_90pct": 5, "sharing_segments_min": 20, "sharing_segments_most": 31}
    values = (("cvq-looc", {"usage": 0.5}), ("vqkit-default-1", {"usage": 0.5}))
    run = observation("looc/text/4/cifar10/sharing_segments_min", values, segments=counts)
    usage = entry("looc/text/3/cifar10/utilization", run)
    assert [one.value for one in usage.seen] == [50.0, 50.0]
    shared = entry("looc/text/4/cifar10/sharing_segments_min", run)
    assert [(one.value, one.difference) for one in shared.seen] == [(20.0, -6.0)]


def test_observations_survive_the_disk_and_damage_is_named(tmp_path):
    run = observation("looc/5/5/mnist/psnr", (("cvq-looc", {"psnr": 20.0}),))
    path = write_observation(run, tmp_path)
    assert read_observations(tmp_path) == (run,)
    path.write_text('{"format": "other"}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"some_run.json: format='other'"):
        read_observations(tmp_path)
    path.write_text('{"format": "vqkit-observation-1", "measurements": []}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"some_run.json: observation: .* run it again"):
        read_observations(tmp_path)
    assert read_observations(tmp_path / "nowhere") == ()


# ---------------------------------------------------------------- page


def test_page_has_every_table_and_the_json_every_cell(tmp_path):
    run = observation("looc/5/5/mnist/psnr", (("cvq-looc", {"psnr": 20.15}),))
    page, data = write_page(tmp_path / "ledger.md", [run])
    text = page.read_text(encoding="utf-8")
    for table in tables():
        assert f"### {PAPERS[table.paper]}, " in text
        assert table.caption in text
    assert text.count("Command: `vqkit reproduce") == len(tables()) == 30
    assert "35.15 → **20.15** (-15.00)" in text
    assert "`some_run`: 10 bits per pixel, 600 of 234,000 steps, batch 128, seed 42" in text
    assert "| needs images, VGG, about" in text
    assert "codebook `imagenet_clip-vit-l_100000`" in text
    assert "- *Inception*: `pt_inception-2015-12-05-6726825d.pth`, for rFID" in text
    values = json.loads(data.read_text(encoding="utf-8"))
    assert len(values["entries"]) == len(cells()) == 1213
    assert values["runs"]["some_run"]["num_steps"] == 600
    by_key = {one["cell"]: one for one in values["entries"]}
    assert by_key["looc/5/5/mnist/psnr"]["observed"][0]["protocol"] == "cvq-looc:0"


def test_page_says_100_percent_of_all_codes_only(tmp_path):
    counts = {"usage": [0.9996, 1.0], "num_segments": 2, "segments_below_90pct": 0}
    counts |= {"sharing_segments_min": 1, "sharing_segments_most": 2}
    values = (("cvq-looc", {"psnr": 20.15, "usage": 1.0}),)
    page, _ = write_page(
        tmp_path / "ledger.md", [observation("looc/5/5/mnist/psnr", values, segments=counts)]
    )
    assert "| `some_run` | 100 % | 99.9 % to 100 % |" in page.read_text(encoding="utf-8")
