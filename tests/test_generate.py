"""`vqkit generate`: images, provenance and grid; what is kept, drawn again, refused."""

import json

import numpy as np
import pytest
import torch
from generation_cases import Drawing, card_of, sampling, small_tokenizer
from PIL import Image

from vqkit.cli import main
from vqkit.data import to_uint8
from vqkit.generation.images import MOST, draw_images
from vqkit.generation.pictures import Row, draw_rows
from vqkit.generation.provenance import FILE, Line, Origin, read_lines
from vqkit.tokens import TokenSet, tokenizer_hash


@pytest.fixture
def tokenizer():
    return small_tokenizer()


def drawn(folder, tokenizer, generator=None, **options):
    generator = generator or Drawing(card_of(tokenizer))
    settings = {"origin": "a" * 64, "count": 6, "sampling": sampling(), **options}
    return draw_images(generator, tokenizer, folder, **settings)


def contents(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_tokenizer_is_hashed_once_until_it_changes(monkeypatch):
    """The hash reads every weight, and every batch of samples asks whose tokens these are."""
    tokenizer = small_tokenizer()
    generator = Drawing(card_of(tokenizer))
    hashed = []

    def counting(one):
        hashed.append(one)
        return tokenizer_hash(one)

    monkeypatch.setattr("vqkit.generation.generator.tokenizer_hash", counting)
    for start in range(3):
        generator.sample(tokenizer, torch.tensor([0, 1]), seed=0, start=2 * start)
    assert len(hashed) == 1
    with pytest.raises(ValueError, match="this generator writes tokens of"):
        generator.sample(small_tokenizer(channels=3), torch.tensor([0]), seed=0)
    generator.sample(tokenizer, torch.tensor([0]), seed=0)
    with torch.no_grad():
        next(tokenizer.parameters()).add_(1)
    with pytest.raises(ValueError, match="this generator writes tokens of"):
        generator.sample(tokenizer, torch.tensor([0]), seed=0)


def test_every_image_is_that_of_its_line(tmp_path, tokenizer):
    found = drawn(tmp_path, tokenizer, seed=7)
    assert (found.made, found.kept, len(found.lines)) == (18, 0, 18)
    generator = Drawing(card_of(tokenizer))
    for line in found.lines:
        labels = torch.tensor([line.label])
        ids = generator.sample(tokenizer, labels, seed=7, start=line.number)
        expected = to_uint8(tokenizer.decode(ids))[0, 0].numpy()
        assert np.array_equal(np.array(Image.open(tmp_path / line.file)), expected)
        assert line.label_name == ("zero", "one, uno", "two")[line.label]
        assert line.number == line.label * MOST + int(line.file[-10:-4])
        assert line.origin.tokenizer == generator.tokenizer
    values = [json.loads(text) for text in (tmp_path / FILE).read_text().splitlines()]
    assert [v["file"] for v in values[:2]] == ["images/0/000000.png", "images/0/000001.png"]
    assert values[0]["sampling"]["batch_size"] == 4
    assert values[0]["generator"] == "a" * 64


def test_more_images_are_added_to_those_that_are_there(tmp_path, tokenizer):
    drawn(tmp_path / "grown", tokenizer, classes=[2], count=3)
    found = drawn(tmp_path / "grown", tokenizer, count=6)
    assert (found.made, found.kept) == (15, 3)
    drawn(tmp_path / "whole", tokenizer, count=6)
    assert contents(tmp_path / "grown") == contents(tmp_path / "whole")


def test_a_stopped_command_goes_on_to_the_same_bytes(tmp_path, tokenizer):
    generator = Drawing(card_of(tokenizer))
    generator.fail_at = 4
    with pytest.raises(KeyboardInterrupt):
        drawn(tmp_path / "stopped", tokenizer, generator)
    with (tmp_path / "stopped" / FILE).open("a") as file:
        file.write('{"file": "images/1/0000')  # a line torn by a kill
    (tmp_path / "stopped/images/0/000001.png").write_bytes(b"torn")
    again = Drawing(card_of(tokenizer))
    found = drawn(tmp_path / "stopped", tokenizer, again)
    assert found.kept == 9
    # whole batches: that with the torn image, then those that are missing
    assert again.calls == [(0, 4), (MOST + 4, 2), (2 * MOST, 4), (2 * MOST + 4, 2)]
    drawn(tmp_path / "whole", tokenizer)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_ids_become_a_token_set(tmp_path, tokenizer):
    drawn(tmp_path, tokenizer, count=3)  # without ids: drawn again for them
    found = drawn(tmp_path, tokenizer, count=5, keep=True)
    assert found.made == 15
    assert drawn(tmp_path, tokenizer, count=5, keep=True).made == 0
    tokens = TokenSet.open(tmp_path / "tokens")
    generator = Drawing(card_of(tokenizer))
    assert tokens.grid == (2, 2)
    assert tokens.tokenizer == generator.tokenizer
    assert tokens.label_names == generator.label_names
    assert tokens.labels(range(15)).tolist() == [line.label for line in found.lines]
    for number, line in enumerate(found.lines):
        labels = torch.tensor([line.label])
        ids = generator.sample(tokenizer, labels, seed=0, start=line.number)
        assert torch.equal(tokens.ids([number]), ids)
    assert main(["tokens", "describe", str(tmp_path / "tokens")]) == 0
    assert main(["tokens", "verify", str(tmp_path / "tokens")]) == 0


def test_without_classes_images_lie_in_one_folder(tmp_path, tokenizer):
    generator = Drawing(card_of(tokenizer, num_classes=0))
    found = drawn(tmp_path, tokenizer, generator, count=10, columns=3)
    assert [line.file for line in found.lines][:2] == ["images/000000.png", "images/000001.png"]
    assert found.lines[0].label is None
    assert Image.open(found.grid).height == Image.open(found.grid).width  # 3 x 3 of them


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"origin": "b" * 64}, "generator"),
        ({"sampling": sampling(temperature=0.5)}, "sampling.temperature"),
    ],
)
def test_a_folder_of_other_images_is_refused(tmp_path, tokenizer, changes, named):
    drawn(tmp_path, tokenizer, count=1)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"another {named}; name another folder"):
        drawn(tmp_path, tokenizer, **changes)
    assert contents(tmp_path) == before
    drawn(tmp_path, tokenizer, count=1, sampling=sampling(batch_size=3, cache="none"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "count=0: must be 1 to 1,000,000"),
        ({"classes": [3]}, "classes: 3: classes are 0 to 2"),
        ({"classes": [1, 1]}, "name each once"),
        ({"columns": 0}, "columns=0"),
    ],
)
def test_bad_requests_draw_nothing(tmp_path, tokenizer, changes, message):
    with pytest.raises(ValueError, match=message):
        drawn(tmp_path / "out", tokenizer, **changes)
    assert not (tmp_path / "out").exists()


def test_classes_are_not_asked_of_a_generator_without(tmp_path, tokenizer):
    generator = Drawing(card_of(tokenizer, num_classes=0))
    with pytest.raises(ValueError, match="trained without classes"):
        drawn(tmp_path, tokenizer, generator, classes=[0])


def test_another_tokenizer_is_refused(tmp_path, tokenizer):
    other = small_tokenizer()
    with torch.no_grad():
        next(other.decoder.parameters()).add_(1)
    with pytest.raises(ValueError, match="load that one"):
        drawn(tmp_path, other, Drawing(card_of(tokenizer)))
    assert not list(tmp_path.iterdir())


def test_a_line_comes_back_from_its_text():
    origin = Origin(generator="g", kind="gpt", tokenizer="t", seed=3, sampling={"guidance": 1.5})
    line = Line(file="images/0.png", number=4, label=None, label_name="", sha256="s", origin=origin)
    assert Line.from_json(line.to_json()) == line
    with pytest.raises(ValueError, match="tells of no image"):
        Line.from_json('{"file": 3}')


def test_no_lines_where_there_is_no_file(tmp_path):
    assert read_lines(tmp_path) == []


def test_rows_stand_where_they_belong():
    images = [torch.full((1, 8, 8), value, dtype=torch.uint8) for value in (10, 90, 200)]
    sheet = draw_rows([Row("", images[:2]), Row("", images[2:])])
    pixels = np.array(sheet)
    centres = [(16 + 32, 16 + 32), (16 + 32, 16 + 68 + 32), (16 + 68 + 32, 16 + 32)]
    assert [int(pixels[y, x, 0]) for y, x in centres] == [10, 90, 200]
    assert sheet.size == (2 * 16 + 64 * 2 + 4, 2 * 16 + 64 * 2 + 4)
    with pytest.raises(ValueError, match="no image to draw"):
        draw_rows([Row("a", [])])


def test_names_take_room_in_front():
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    plain, named = (draw_rows([Row(name, [image])]).width for name in ("", "guinea pig (338)"))
    assert named > plain + 60
