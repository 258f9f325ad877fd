"""The command line through `main([...])`: exit codes, one line for what is wrong, files."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from vqkit.cli import COMMANDS, main
from vqkit.cli.runs import place_of
from vqkit.config import DataConfig, QuantizerConfig, VQGANNetwork
from vqkit.models import ImageTokenizer, TokenizerConfig
from vqkit.quantizers import PRESETS
from vqkit.quantizers.methods import BEGIN, END, EXAMPLES, methods_table, with_table
from vqkit.training import load_run, read_log
from vqkit.training.trainer import Trainer

SMALL = [
    *("--size", "16", "--num_steps", "4", "--batch_size", "4"),
    *("--network.hidden", "16", "--network.residual_hidden", "4", "--log.every", "1"),
    *("--quantizer.args.num_codes", "8"),
]


@pytest.fixture
def pictures(tmp_path):
    """A folder of six noisy gradients, 24 x 20 pixels."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(6):
        ramp = torch.linspace(0, 200, 20)[None, :, None] + torch.arange(3) * 10 + i
        noise = torch.rand(24, 20, 3, generator=torch.Generator().manual_seed(i)) * 25
        Image.fromarray((ramp + noise).to(torch.uint8).numpy()).save(folder / f"{i}.png")
    return folder


def training(pictures, out, *more, recipe="photos_looc"):
    return main(["train", recipe, "--path", str(pictures), "--out", str(out), *SMALL, *more])


def refused(capsys, *words):
    """The one line on stderr of a command that must end with exit code 2."""
    assert main([*words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("vqkit: ")
    return shown.err


def test_help_is_light_and_names_every_command():
    script = (
        "import sys; from vqkit.cli import main; code = main(['--help']);"
        "heavy = {'torch', 'numpy', 'jsonargparse', 'PIL'} & set(sys.modules);"
        "print('loaded', *heavy); sys.exit(code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.splitlines()[-1] == "loaded"
    assert all(f"  {name} " in result.stdout for name in COMMANDS)


def test_python_m_gives_the_exit_code():
    command = [sys.executable, "-m", "vqkit", "trian"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 2
    assert "did you mean 'train'?" in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"usage: vqkit {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "command='trian': unknown; did you mean 'train'?"),
        (["cluster", "features"], "command='cluster': unknown; did you mean 'codebook cluster'?"),
        (["tsen"], "did you mean 'analyze tsne'?"),
        (["describe", "lookc"], "did you mean 'looc'?"),
        (["describe", "looc", "--num_kodes", "3"], "--num_kodes: unknown option; did you mean"),
        (["describe", "looc", "--num_codes", "many"], "num_codes=many: expected a whole number"),
        (["describe", "looc", "--layout", "left"], "layout=left: expected one of 'paper'"),
        (["describe", "looc", "--num_codes", "0"], "num_codes=0"),
        (["describe", "looc", "--image_size", "0", "8"], "image_size=(0, 8)"),
        (["train"], "recipe: none is named"),
        (["train", "looc_mnits"], "did you mean looc_mnist"),
        (["train", "looc_mnist", "--optim.lrr", "1"], "--optim.lrr: unknown option; did you mean"),
        (["train", "looc_mnist", "--optim.learning_rate", "4"], "did you mean --optim.lr?"),
        (["train", "looc_mnist", "--learning_rate", "4"], "did you mean --optim.lr?"),
        (["train", "photos_lc", "--out", "no/where"], "codebook cluster` writes (options --c"),
        (["train", "looc_mnist", "--optim.lr", "fast"], "optim.lr=fast: expected a number"),
        (["train", "looc_mnist", "--optim.lr", "-1"], "optim.lr=-1.0: must be above 0"),
        (["train", "looc_mnist", "--optim.lr"], "--optim.lr: expected one argument"),
        (["train", "looc_mnist", "--optim.clip_norm", "x"], "optim.clip_norm=x: expected float"),
        (["train", "looc_mnist", "--path", "no/where"], "data.path='no/where': does not exist"),
        (["train", "looc_mnist", "--seed", "1", "more"], "more: unexpected; names come first"),
        (["train", "a", "b"], "expected one recipe"),
        (["train", "--config", "none.yaml"], "config=none.yaml: no such file"),
        (["evaluate"], "run: none is named"),
        (["evaluate", "no_run"], "no such folder"),
        (["compare", "photos_looc"], "give at least two"),
        (["compare", "photos_looc", "photos_lock"], "did you mean photos_looc"),
        (["demo", "--stesp", "3"], "did you mean --steps?"),
    ],
)
def test_bad_input_is_one_line(words, said, capsys):
    assert said in refused(capsys, *words)


def test_debug_shows_where(capsys):
    with pytest.raises(ValueError, match="did you mean 'looc'"):
        main(["describe", "lookc", "--debug"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optim: {lrr: 3}", "optim.lrr: unknown option; did you mean optim.lr?"),
        ("optim: {lr: fast}", "optim.lr=fast: expected a number"),
        ("optim: 3", "optim=3"),
        ("optim: [", "config"),
        ("optim: {lr: 1e-3}", "name: is missing"),
        ("quantizer: {class_path: os.system}", "quantizer.class_path: unknown option"),
        ("name: !!python/object/apply:os.system [exit]", "could not determine a constructor"),
    ],
)
def test_bad_files_are_one_line(text, said, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    assert said in refused(capsys, "train", "--config", str(file))


def settings(capsys, *words):
    assert main(["train", *words, "--print_config"]) == 0
    return json.loads(capsys.readouterr().out)


def test_options_change_the_recipe_and_keep_the_rest(capsys):
    base = settings(capsys, "looc_mnist")
    changed = settings(
        capsys,
        *("looc_mnist", "--optim.lr", "1e-3", "--quantizer.args.num_codes", "512"),
        *("--optim.clip_norm=2", "--data.flip", "true", "--name", "mine"),
    )
    assert changed["optim"] == {**base["optim"], "lr": 1e-3, "clip_norm": 2.0}
    assert changed["quantizer"]["args"] == {**base["quantizer"]["args"], "num_codes": 512}
    assert changed["name"] == "mine"
    assert changed["data"] == {**base["data"], "flip": True}
    assert changed["test_data"] == base["test_data"]


def test_the_recipes_own_arguments_are_options(capsys):
    found = settings(capsys, "looc_mnist", "--num_codes", "32", "--path", "here")
    assert found["quantizer"]["args"]["num_codes"] == 32
    assert found["data"]["path"] == found["test_data"]["path"] == "here"
    assert found["name"] == "looc_32x4_mnist"


def test_another_preset_starts_without_arguments(capsys):
    found = settings(
        capsys, "looc_mnist", "--quantizer.preset", "fsq", "--quantizer.args.levels", "[4,4]"
    )
    assert found["quantizer"] == {"preset": "fsq", "args": {"levels": [4, 4]}}


@pytest.mark.slow
def test_a_file_holds_a_whole_run_and_options_win(capsys, tmp_path):
    base = settings(capsys, "looc_mnist", "--seed", "7")
    file = tmp_path / "run.json"
    file.write_text(json.dumps(base), encoding="utf-8")
    assert settings(capsys, "--config", str(file)) == base
    assert settings(capsys, "--config", str(file), "--seed", "8") == {**base, "seed": 8}
    part = tmp_path / "part.yaml"
    part.write_text("optim:\n  lr: 1e-3\nnum_codes: 64\n", encoding="utf-8")
    found = settings(capsys, "looc_mnist", "--config", str(part))
    assert found["optim"]["lr"] == 1e-3
    assert found["quantizer"]["args"]["num_codes"] == 64


def test_train_lists_recipes(capsys):
    assert main(["train", "--list"]) == 0
    assert "looc_mnist " in capsys.readouterr().out


@pytest.mark.parametrize("preset", PRESETS)
def test_describe_every_preset(preset, capsys):
    small = {"vqgan_lc": [], "fsq": [], "lfq": []}.get(preset, ["--num_codes", "16"])
    assert main(["describe", preset, *small, "--image_size", "64", "32", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["height"], found["width"]) == (4, 2)
    assert found["bits_per_pixel"] == pytest.approx(found["bits_per_position"] / 256)
    assert set(found["parts"]) == {
        *("codebook", "assignment", "update"),
        *("terms", "composition", "grid"),
    }


def test_describe_writes_for_people(capsys):
    assert main(["describe", "looc", "--num_codes", "32", "--stride", "4"]) == 0
    text = capsys.readouterr().out
    assert "32 shared segments" in text
    assert "bits per pixel    10" in text  # 32 segments of 5 bits on 16 pixels
    assert main(["describe"]) == 0
    assert all(f"{name} " in capsys.readouterr().out for name in ("looc",))


def test_train_evaluate_and_describe(pictures, tmp_path, capsys):
    run = tmp_path / "run"
    assert training(pictures, run) == 0
    assert load_run(run)[0].quantizer.args == {
        "num_codes": 8,
        "dim": 4,
        "num_segments": 16,
        "commitment": 1.0,
    }
    capsys.readouterr()
    assert "data.source" in refused(capsys, "evaluate", str(run / "tokenizer"))  # of no run
    held_out = ["--data.path", str(pictures)]
    assert main(["evaluate", str(run), *held_out, "--data.limit", "3"]) == 0
    shown = capsys.readouterr()
    assert "photos_looc" in shown.out
    assert f"measuring photos_looc on 3 images of folder {pictures}\n" in shown.err
    (file,) = run.glob("evaluation*.json")
    assert shown.out.endswith(f"wrote {file}\n")
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["data"]["num_images"] == 3
    assert file.name == f"evaluation-{found['protocol']['id'][-8:]}.json"
    other = tmp_path / "other.json"
    assert main(["evaluate", str(run / "tokenizer"), *held_out, "--json", str(other)]) == 0
    assert json.loads(other.read_text(encoding="utf-8"))["data"]["num_images"] == 6
    tiled = [*held_out, "--tile", "8", "--halo", "4", "--json", str(other)]
    assert main(["evaluate", str(run), *tiled]) == 0
    assert json.loads(other.read_text(encoding="utf-8"))["protocol"]["halo"] == 4
    capsys.readouterr()
    assert "needs protocol.tile" in refused(capsys, "evaluate", str(run), "--halo", "4")
    assert main(["describe", str(run), "--image_size", "32", "32", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bits_per_pixel"] == 3.0  # 16 segments of 3 bits


@pytest.mark.slow
def test_only_a_runs_own_test_set_makes_its_evaluation(pictures, tmp_path):
    run = tmp_path / "run"
    assert training(pictures, run, "--test_path", str(pictures)) == 0
    assert main(["evaluate", str(run)]) == 0
    usual = (run / "evaluation.json").read_bytes()
    for other in (["--tile", "8"], ["--data.limit", "4"]):
        assert main(["evaluate", str(run), *other]) == 0
    assert (run / "evaluation.json").read_bytes() == usual
    assert len(list(run.glob("evaluation-????????.json"))) == 2
    assert place_of(DataConfig(source="photos", split="test")) == "photos (test)"


def test_tiles_are_warned_of_once(pictures, tmp_path, capsys):
    network = VQGANNetwork(
        width=8, multipliers=(1, 2), num_res_blocks=1, attention_strides=(), norm_groups=4
    )
    quantizer = QuantizerConfig(preset="vq_vae", args={"num_codes": 8, "dim": 4})
    ImageTokenizer(TokenizerConfig(network=network, quantizer=quantizer)).save_pretrained(
        tmp_path / "tokenizer"
    )
    words = ["evaluate", str(tmp_path / "tokenizer"), "--data.path", str(pictures)]
    assert main([*words, "--data.source", "folder", "--tile", "8", "--halo", "0"]) == 0
    measuring, warning = capsys.readouterr().err.splitlines()
    assert measuring.startswith("measuring tokenizer")
    assert warning.startswith("warning: tile=8: the result is not that of the whole image")


def test_validations_are_told(pictures, tmp_path, capsys):
    held = ["--validation.data.path", str(pictures), "--validation.every", "2"]
    assert training(pictures, tmp_path / "run", *held) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "validation" in line]
    log = [line for line in read_log(tmp_path / "run" / "log.jsonl") if "validation/psnr" in line]
    best = json.loads((tmp_path / "run" / "best" / "best.json").read_text(encoding="utf-8"))
    assert [line["step"] for line in log] == [2, 4]
    assert len(told) == 2
    for said, line in zip(told, log, strict=True):
        psnr = f"{line['validation/psnr']:.4g}"
        assert said.startswith(f"step {line['step']}: validation psnr {psnr}, l1 ")
    assert [line for line in told if "best so far" in line][-1].startswith(f"step {best['step']}:")


def test_images_to_validate_on_have_the_source_of_those_to_train_on(capsys):
    held = ["--validation.data.path", "held"]
    for words, source in (
        (["photos_vq_vae"], "folder"),  # the photographs in the wheels have no path
        (["photos_vq_vae", "--path", "mine"], "folder"),
        (["photos_vq_vae", "--data.source", "parquet", "--data.path", "mine"], "parquet"),
        (["photos_vq_vae", "--validation.data.source", "lmdb"], "lmdb"),
    ):
        assert settings(capsys, *words, *held)["validation"]["data"]["source"] == source


def test_options_that_recipes_share_are_explained(capsys):
    assert main(["train", "photos_vqgan", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--path PATH Folder of your images; default the photographs" in shown
    assert "--start START Step from which the discriminator takes part" in shown


@pytest.mark.slow
def test_a_second_command_goes_on_or_starts_fresh(pictures, tmp_path, capsys):
    run = tmp_path / "run"
    assert training(pictures, run) == 0
    first = (run / "result.json").read_bytes()
    assert training(pictures, run) == 0
    assert (run / "result.json").read_bytes() == first, "a finished run is not trained again"
    capsys.readouterr()
    assert training(pictures, run, "--seed", "3") == 2
    assert "other settings" in capsys.readouterr().err
    assert training(pictures, run, "--seed", "3", "--fresh") == 0
    assert load_run(run)[0].seed == 3


def test_fresh_deletes_nothing_but_runs(pictures, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    note = tmp_path / "mine" / "note.txt"
    note.write_text("keep", encoding="utf-8")
    assert training(pictures, tmp_path / "mine", "--fresh") == 2
    assert "holds no run" in capsys.readouterr().err
    assert note.read_text(encoding="utf-8") == "keep"


@pytest.mark.slow
def test_interrupted_and_continued(pictures, tmp_path, capsys, monkeypatch):
    run, whole = tmp_path / "run", tmp_path / "whole"
    step = Trainer.step

    def interrupted(self, batch):
        if self.done == 1:
            signal.raise_signal(signal.SIGINT)
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", interrupted)
    assert training(pictures, run) == 130
    error = capsys.readouterr().err.splitlines()[-1]
    assert "stopped after step 2" in error
    assert "same command" in error
    monkeypatch.undo()
    assert training(pictures, run) == 0
    assert training(pictures, whole) == 0
    losses = [[line["loss"] for line in read_log(f / "log.jsonl")] for f in (run, whole)]
    assert len(losses[0]) == 4
    assert losses[0] == losses[1]


def test_a_missing_extra_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    line = refused(capsys, "train", "photos_looc", "--out", "nowhere")
    assert "pip install 'vqkit[demo]'" in line
    assert not Path("nowhere").exists()


def test_examples_build_what_the_table_says():
    assert set(EXAMPLES) == set(PRESETS)
    table = methods_table()
    assert len(table.splitlines()) == len(PRESETS) + 2
    assert "| `looc` | free | nearest, cosine | closest anchors |" in table
    page = f"before\n{BEGIN}\nold\n{END}\nafter"
    assert with_table(page) == f"before\n{BEGIN}\n{table}\n{END}\nafter"
    with pytest.raises(ValueError, match="has no"):
        with_table("no marks")


def test_readme_holds_the_table_of_methods():
    readme = Path(__file__).resolve().parent.parent / "README.md"
    text = readme.read_text(encoding="utf-8")
    assert f"{BEGIN}\n{methods_table()}\n{END}" in text, (
        "python -m vqkit.quantizers.methods README.md"
    )


def test_the_tokenizer_of_a_run_is_plain_files(pictures, tmp_path):
    assert training(pictures, tmp_path / "run", recipe="photos_cvq") == 0
    tokenizer = ImageTokenizer.from_pretrained(tmp_path / "run" / "tokenizer")
    assert tokenizer.encode(torch.zeros(1, 3, 8, 8)).shape == (1, 2, 2, 1)


def test_a_run_that_never_began_may_be_begun_with_other_settings(pictures, tmp_path, capsys):
    """The message's advice can be followed in the same folder."""
    run = tmp_path / "run"
    words = ["train", "photos_fsq", "--path", str(pictures), "--out", str(run), "--num_steps", "2"]
    words += ["--network.hidden", "8", "--size", "16", "--batch_size"]
    assert "batch_size" in refused(capsys, *words, "5000")
    assert main([*words, "2"]) == 0


@pytest.mark.slow
def test_a_longer_run_goes_on_though_its_logging_changes(pictures, tmp_path, capsys):
    run = tmp_path / "run"
    words = ["train", "photos_fsq", "--path", str(pictures), "--out", str(run), "--size", "16"]
    words += ["--network.hidden", "8", "--batch_size", "2", "--num_steps"]
    assert main([*words, "2"]) == 0
    assert main([*words, "4"]) == 0
    assert "goes on from there" in capsys.readouterr().err
    assert "other settings" in refused(capsys, *words, "4", "--optim.lr", "0.5")
    hint = "to lengthen a run, add --optim.num_steps N to its own command"
    assert hint in refused(capsys, *words, "6", "--optim.lr", "0.5")
    assert main([*words, "4", "--optim.num_steps", "5"]) == 0


def test_an_interrupted_command_says_so(monkeypatch, capsys):
    def interrupt(words):
        raise KeyboardInterrupt

    monkeypatch.setattr("vqkit.cli.describe.run", interrupt)
    assert main(["describe", "looc"]) == 130
    assert capsys.readouterr().err == "vqkit: interrupted\n"
