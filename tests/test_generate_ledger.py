"""The ledger's rows of generators and classifiers: commands from a tokenizer to the number."""

import shlex

import pytest

from vqkit.cli import main
from vqkit.ledger.downstream import commands_of
from vqkit.ledger.entries import entries
from vqkit.ledger.plans import plan_of
from vqkit.ledger.published import cells
from vqkit.recipes import GENERATORS, RECIPES
from vqkit.recipes.classification import CLASSIFIERS

DOWNSTREAM = [cell for cell in cells() if cell.metric in ("gfid", "top1", "top1_margin")]


@pytest.fixture(scope="module")
def every():
    """The entry of every cell by its key."""
    return {entry.cell.key: entry for entry in entries(())}


@pytest.mark.slow
def test_own_rows_have_a_whole_chain_and_quoted_systems_have_none(every):
    for cell in DOWNSTREAM:
        commands = commands_of(cell)
        entry = every[cell.key]
        assert bool(commands) == (not cell.quoted), cell.key
        assert bool(plan_of(cell).recipe) or cell.quoted
        if not commands:
            assert entry.command == ""
            continue
        verbs = [command.split()[1] for command in commands]
        built = ["tokenize", "classify", "classify"]
        if cell.metric == "gfid":
            built = ["train", "generate", "reference", "score"]
        assert verbs == ["train", "tokenize", *built], cell.key
        assert entry.command == " && ".join(commands)


def test_a_tokenizer_alone_needs_no_chain():
    alone = [cell for cell in cells() if cell.metric == "rfid"]
    assert alone
    assert not any(commands_of(cell) for cell in alone)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("vqgan-lc/4/10/imagenet/gfid", "lc_gpt --data_set imagenet"),
        ("vqgan-lc/4/10/imagenet/gfid", "--count 50 --top_k 0.1"),
        ("vqgan-lc/4/13/imagenet/gfid", "--scheduler dopri5 --guidance 8 --guidance_channels 3"),
        ("vqgan-lc/4/20/imagenet/gfid", "lc_ldm --data_set imagenet --num_tokens 1024"),
        ("vqgan-lc/1/1/imagenet/gfid", "lc_ldm --data_set imagenet --num_tokens 256"),
        ("vqgan-lc/5/9/ffhq/gfid", "--count 50000 --scheduler ddim --steps 200 --eta 1 --out"),
        ("looc/11/1/imagenet/gfid", "--class_references references/imagenet_classes"),
        ("looc/11/2/lsun-churches/gfid", "looc_ldm --data_set lsun_churches"),
    ],
)
def test_settings_that_the_papers_print_are_in_the_commands(every, key, words):
    assert words in every[key].command


def lines(verb):
    found = {command for cell in DOWNSTREAM for command in commands_of(cell)}
    return sorted(one for one in found if one.startswith(f"vqkit {verb} "))


@pytest.mark.slow
def test_every_training_is_one_that_the_command_takes():
    for command in lines("train") + lines("classify train"):
        words = shlex.split(command)[1:]
        recipe = words[2] if words[0] == "classify" else words[1]
        assert recipe in {**RECIPES, **GENERATORS, **CLASSIFIERS}
        if "--codebook" in words:  # read when the recipe is made
            continue
        assert main([*words, "--print_config"]) == 0, command


def test_the_command_tells_the_chain(capsys):
    main(["reproduce", "vqgan-lc-table4", "--rows", "10"])
    said = capsys.readouterr().err
    assert "vqgan-lc/4/10, step by step:" in said
    assert "  vqkit train lc_gpt --data_set imagenet --tokens tokens/" in said
