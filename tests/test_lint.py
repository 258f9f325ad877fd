"""The linter on the published tables: what it must find, and what makes each finding vanish."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from vqkit.ledger.lint import LEVELS, gather, lint
from vqkit.ledger.lint.page import page

ROOT = Path(__file__).resolve().parent.parent


@cache
def published(*papers):
    return gather(papers or ["papers", "llamagen"])


def source_of(rule, place):
    """The one paper that a finding needs, which is quicker than all; two rules need several."""
    return () if rule.startswith("two-") else (place.split("/")[0].split(",")[0],)


@cache
def findings():
    return lint(published())


def names(found):
    return {(one.rule, one.place, one.level) for one in found}


def altered(dossier, cells=(), settings=(), claims=()):
    """Replace numbers of cells, settings of rows, and what claims say."""
    cells, settings, claims = dict(cells), dict(settings), dict(claims)

    def row_of(table, row):
        told = {**row.settings, **settings.get(f"{table.key}/{row.number}", {})}
        numbers = [
            replace(cell, value=cells.get(cell.key, cell.value), settings=told)
            for cell in row.cells
        ]
        return replace(row, settings=told, cells=tuple(numbers))

    tables = tuple(
        replace(table, rows=tuple(row_of(table, row) for row in table.rows))
        for table in dossier.tables
    )
    said = tuple(
        replace(claim, says=claims.get((claim.where, claim.says), claim.says))
        for claim in dossier.claims
    )
    return replace(dossier, tables=tables, claims=said)


DUAL_TO_WIDE = {
    f"dual/1/6/{data}/{metric}": value * width
    for data, l1, l2 in (
        ("ade20k", 0.0682, 0.0099),
        ("celeba-hq", 0.0364, 0.003),
        ("ms-coco", 0.0717, 0.0103),
    )
    for metric, value, width in (("l1", l1, 2), ("l2", l2, 4))
}
S1_TO_WIDE = {"dual/S1/6/cub-200/l1": 0.1456, "dual/S1/6/cub-200/l2": 0.0408}
TABLE10 = {"vqgan-lc/10/1/imagenet/rfid": 2.62, "vqgan-lc/10/1/imagenet/ssim": 58.9}

EXPECTED = [
    # (rule, place, level, numbers or settings that make it vanish)
    ("pixel-range", "dual/1", "suspicion", {"cells": DUAL_TO_WIDE}),
    ("pixel-range", "dual/S1", "suspicion", {"cells": S1_TO_WIDE}),
    (
        "copied-cell",
        "looc/9/16/imagenet",
        "suspicion",
        {"cells": {"looc/9/16/imagenet/lpips": 0.0512}},
    ),
    (
        "order",
        "looc/9/16/imagenet",
        "suspicion",
        {"cells": {"looc/9/16/imagenet/lpips": 0.05, "looc/9/16/imagenet/ssim": 0.86}},
    ),
    ("order", "looc/2/16/imagenet", "suspicion", {"cells": {"looc/2/16/imagenet/ssim": 0.86}}),
    (
        "same-numbers",
        "looc/2/11/imagenet",
        "suspicion",
        {"settings": {"looc/2/11": {"codebook_size": 16384}}},
    ),
    ("same-numbers", "looc/2/1/ffhq", "suspicion", {"cells": {"looc/2/1/ffhq/psnr": 23.0}}),
    (
        "same-numbers",
        "vqgan-lc/7/5/imagenet",
        "suspicion",
        {"settings": {"vqgan-lc/10/1": {"codebook_size": 200000}}},
    ),
    ("same-settings", "vqgan-lc/1/12/imagenet", "contradiction", {"cells": TABLE10}),
    (
        "same-settings",
        "vqgan-lc/2/19/imagenet",
        "contradiction",
        {"cells": {**TABLE10, "vqgan-lc/9/3/imagenet/ssim": 58.9}},
    ),
    (
        "same-settings",
        "vqgan-lc/3/5/ffhq",
        "suspicion",
        {"cells": {"vqgan-lc/5/7/ffhq/utilization": 10.9}},
    ),
    (
        "same-settings",
        "vqgan-lc/Fig1/3/imagenet",
        "suspicion",
        {"cells": {"vqgan-lc/text/1/imagenet/top1": 75.5}},
    ),
    (
        "same-settings",
        "looc/12/1/celeba",
        "contradiction",
        {"settings": {"looc/12/2": {"codebook_size": 1024}}},
    ),
    (
        "two-sources",
        "vqgan-lc/3/1/ffhq",
        "suspicion",
        {"cells": {"vqgan-lc/3/1/ffhq/rfid": 3.88, "vqgan-lc/3/1/ffhq/psnr": 23.0}},
    ),
    ("two-metrics", "vqgan-lc/5/5", "suspicion", {"cells": {"vqgan-lc/5/5/ffhq/gfid": 4.13}}),
    ("lone-fid", "looc/9", "suspicion", {"cells": {"looc/9/15/imagenet/rfid": 1.1}}),
    (
        "rate",
        "looc/10",
        "caution",
        {"settings": {"looc/10/2": {"num_segments": 32}, "looc/10/4": {"num_segments": 32}}},
    ),
    (
        "fid-mode",
        "looc/11",
        "caution",
        {"settings": {f"looc/11/{n}": {"fid_mode": None} for n in (1, 2, 3)}},
    ),
]


@pytest.mark.parametrize(("rule", "place", "level", "cure"), EXPECTED)
def test_numbers_alone(rule, place, level, cure):
    assert (rule, place, level) in names(findings())
    dossier = published(*source_of(rule, place))
    assert (rule, place, level) not in names(lint(altered(dossier, **cure)))


CLAIMS = [
    # (kind, where, words of the claim, level, cure)
    (
        "difference",
        "Section 4.3",
        "SSIM gains only 0.03",
        "contradiction",
        {"claims": {("Section 4.3", 0.03): 0.3}},
    ),
    (
        "difference",
        "Section 4.3",
        "PSNR gains only 0.01",
        "suspicion",
        {"claims": {("Section 4.3", 0.01): 0.1}},
    ),
    (
        "value",
        "Section 4.2",
        "75.7",
        "contradiction",
        {"cells": {"vqgan-lc/Fig1/3/imagenet/top1": 75.7}},
    ),
    (
        "difference",
        "Section 4.2",
        "1.6 above",
        "contradiction",
        {"cells": {"vqgan-lc/text/1/imagenet/top1": 75.5}},
    ),
    (
        "at_least",
        "Section 4.2",
        "in generation",
        "suspicion",
        {"cells": {"vqgan-lc/4/10/imagenet/utilization": 99.4}},
    ),
    (
        "value",
        "Section 4.1",
        "MNIST is 1.31",
        "suspicion",
        {"claims": {("Section 4.1", 1.31): 1.70}},
    ),
    (
        "value",
        "Section 4.1",
        "CIFAR10 is 19.22",
        "suspicion",
        {"claims": {("Section 4.1", 19.22): 24.53}},
    ),
    (
        "setting",
        "Section 4.2",
        "K = 256",
        "contradiction",
        {"settings": {"looc/4/8": {"codebook_size": 256}}},
    ),
    (
        "setting",
        "supplement, Section 5",
        "K = 1024",
        "contradiction",
        {"settings": {"looc/12/2": {"codebook_size": 1024}}},
    ),
    (
        "same_index_bits",
        "supplement, Section 1.1",
        "K' =",
        "impossible",
        {"settings": {"looc/1/6": {"num_segments": 2}}},
    ),
    (
        "same_rate",
        "Section 4.2.1",
        "same compression ratio",
        "suspicion",
        {"settings": {"dual/1/6": {"codebook_size": 32}, "dual/1/5": {"codebook_size": 1024}}},
    ),
    (
        "at_most",
        "Section 1",
        "less than a tenth",
        "suspicion",
        {"settings": {"dual/1/6": {"num_codebooks": 1}}},
    ),
    (
        "better",
        "Section 4.3.1",
        "large global codebook",
        "contradiction",
        {
            "cells": {
                "dual/2/3/ms-coco/rfid": 4.0,
                "dual/2/3/ms-coco/psnr": 19.9,
                "dual/2/3/ms-coco/l1": 0.08,
                "dual/2/3/ms-coco/l2": 0.013,
            }
        },
    ),
    (
        "better",
        "Section 4.3.1",
        "two codebooks alone",
        "suspicion",
        {"cells": {"dual/2/2/ms-coco/psnr": 20.3}},
    ),
    ("better", "abstract", "faces", "suspicion", {"cells": {"dual/1/6/celeba-hq/rfid": 4.9}}),
    (
        "better",
        "supplement",
        "losses are lower",
        "suspicion",
        {"cells": {"dual/S1/6/cub-200/l1": 0.07}},
    ),
    (
        "monotone",
        "Section 4.2",
        "improve progressively",
        "contradiction",
        {
            "cells": {
                "looc/5/4/mnist/l1": 0.0090,
                "looc/5/4/mnist/lpips": 0.0090,
                "looc/5/4/mnist/rfid": 1.8,
                "looc/5/4/mnist/ssim": 0.9955,
                "looc/5/4/mnist/psnr": 34.5,
            }
        },
    ),
    (
        "better",
        "supplement, Section 4.1",
        "(ImageNet)",
        "contradiction",
        {"cells": {"looc/9/15/imagenet/rfid": 1.5}},
    ),
]


@pytest.mark.parametrize(("kind", "where", "words", "level", "cure"), CLAIMS)
def test_claims(kind, where, words, level, cure):
    def found(all_findings):
        return [
            one
            for one in all_findings
            if one.rule == f"claim-{kind}"
            and one.place.endswith(f", {where}")
            and words in one.statement
        ]

    (one,) = found(findings())
    assert one.level == level
    assert not found(lint(altered(published(*source_of(one.rule, one.place)), **cure)))


def test_llamagen_by_its_declared_settings():
    assert ("data-range", "llamagen/tokenizers/ssim", "contradiction") in names(findings())
    (table,) = gather(["llamagen"]).tables
    honest = [
        replace(column, settings={**column.settings, "data_range": 1.0})
        if column.metric == "ssim"
        else column
        for column in table.columns
    ]
    assert not lint(replace(gather(["llamagen"]), tables=(replace(table, columns=tuple(honest)),)))


def test_true_claims_are_left_alone():
    told = " ".join(one.statement for one in findings())
    for true in (
        "FID on MS-COCO is 4.19",
        "32x4 is 1024 times smaller",
        "LooC is better than PQ",
        "the transformer (v) improves",
        "features of ViT-L",
        "at K = 256 every metric",
    ):
        assert any(true in claim.text for claim in published().claims)
        assert true not in told


def test_dual_losses_show_their_arithmetic():
    (one,) = [f for f in findings() if (f.rule, f.place) == ("pixel-range", "dual/1")]
    text = "\n".join(one.arithmetic)
    assert "[0, 1] (row 6) and [-1, 1] (rows 1, 2, 3, 4, 5)" in one.statement
    assert "seem" in one.statement
    assert "all rows are on [-1, 1] is impossible" in one.statement
    # -10 log10(0.0103) = 19.872, and 6.021 dB more on [-1, 1]
    assert "PSNR 20.72, l2 0.0103; least PSNR on [0, 1] 19.87 dB (0.85 above" in text
    assert "least PSNR on [-1, 1] 25.89 dB (5.17 below, impossible)" in text
    assert "dual/1/6/ms-coco/l1: 0.0717 is 0.1434 on [-1, 1]; rank 1 of 6 as printed, 6" in text


def test_names_of_papers_do_not_matter():
    """The same tables under other names give the same findings: no rule knows a paper."""

    def renamed(text):
        return f"x-{text}"

    def cell_of(cell):
        return replace(cell, paper=renamed(cell.paper), system=renamed(cell.system))

    def row_of(row):
        cells = tuple(cell_of(cell) for cell in row.cells)
        return replace(row, system=renamed(row.system), cells=cells)

    tables = tuple(
        replace(t, paper=renamed(t.paper), rows=tuple(row_of(row) for row in t.rows))
        for t in published().tables
    )
    claims = tuple(
        replace(
            claim,
            paper=renamed(claim.paper),
            cells=tuple(map(renamed, claim.cells)),
            rows=tuple(map(renamed, claim.rows)),
        )
        for claim in published().claims
    )
    defaults = {
        "/".join(map(renamed, key.split("/"))): value for key, value in published().defaults.items()
    }
    other = lint(replace(published(), tables=tables, claims=claims, defaults=defaults))
    assert [(one.rule, one.level) for one in other] == [(x.rule, x.level) for x in findings()]


def test_no_line_of_arithmetic_is_told_twice():
    for one in findings():
        assert len(set(one.arithmetic)) == len(one.arithmetic), one.place


def test_gravest_first():
    order = [list(LEVELS).index(one.level) for one in findings()]
    assert order == sorted(order)


def test_the_page_is_up_to_date():
    path = "docs/results/linter.md"
    command = f"vqkit lint papers llamagen --page {path}"
    assert (ROOT / path).read_text(encoding="utf-8") == page(published(), findings(), command)
