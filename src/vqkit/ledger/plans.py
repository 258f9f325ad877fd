"""How vqkit would run every row of the three papers: recipe, options, images, or why it cannot.

A plan says nothing about whether the row was run; `observed` does. Rows that several tables print
(Table 8 of LooC repeats those of its Tables 1, 3, 4 and 5) have equal plans and share one run.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from vqkit.ledger.cells import Cell, Setting

Options = Mapping[str, Setting]

SMALL_SETS: Final = ("mnist", "cifar10", "fashion-mnist")
"""Data sets of LooC's small images."""
_SYSTEMS_NOT_OFFERED: Final = {
    "hvq-vae": "HVQ-VAE, a stack of autoencoders, is not in vqkit",
    "vqct": "VQCT is not in vqkit",
    "dq-vae": "DQ-VAE is not in vqkit",
    "df-vqgan": "DF-VQGAN is not in vqkit",
    "divae": "DiVAE is not in vqkit",
    "vq-wae": "VQ-WAE is not in vqkit",
    "mq-vae": "MQ-VAE is not in vqkit",
    "seq-gan": "SeQ-GAN is not in vqkit",
    "rq-transformer": "RQ-Transformer is not in vqkit",
    "dq-transformer": "DQ-Transformer is not in vqkit",
    "stackformer": "Stackformer is not in vqkit",
    "ldm": "the tokenizer of LDM is not among the recipes",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How one row would be run on one data set."""

    recipe: str = ""
    """Of `vqkit.recipes`; empty where there is none."""
    options: Options = field(default_factory=dict)
    """Arguments of the recipe that make it this row."""
    data_set: str
    """Images trained on, under the ledger's name (`fashion-mnist`)."""
    test_set: str
    """Images measured on."""
    lacking: str = ""
    """Why no recipe can give this row."""

    @property
    def train_command(self) -> str:
        """The command that trains it; empty without a recipe."""
        if not self.recipe:
            return ""
        words = [f"--{name} {word_of(x)}" for name, x in self.options.items()]
        return " ".join(["vqkit train", self.recipe, *words, f"--path data/{self.folder}"])

    @property
    def folder(self) -> str:
        """Folder of the images below `data/`, where recipes look."""
        return folder_of(self.data_set)


def folder_of(data_set: str) -> str:
    """Return the name under which recipes know a data set: `lsun_bedrooms`."""
    return data_set.replace("-", "_").replace("lsun_bedroom", "lsun_bedrooms")


def plan_of(cell: Cell) -> Plan:
    """Return the plan of a cell's row on the cell's data set.

    Reading a row where the papers are silent or contradict themselves follows the recipes: the
    second row of LooC's Table 12 prints 256 codes and by the text has 1,024; the VQ-VAE of its
    Figure 5 has no size and is taken as that of Table 5; Table 10 of VQGAN-LC prints no size and is
    taken at 100,000, that of its other ablations.
    """
    if cell.system in _SYSTEMS_NOT_OFFERED:
        return _without(cell, _SYSTEMS_NOT_OFFERED[cell.system])
    return _PAPERS[cell.paper](cell)


def protocol_of(cell: Cell) -> str:
    """Return the named protocol that measures as a cell was; empty where that is not known.

    Dual Codebook quotes its baselines from VQCT, whose l1 and l2 are those of [-1, 1]. The
    framework of LooC's rows of 256 x 256 pixels is not published.
    """
    if cell.paper == "dual":
        return "vqct" if cell.quoted else "vqct-dual"
    if cell.paper == "looc":
        return "cvq-looc" if cell.dataset in SMALL_SETS else ""
    return "vqgan-lc"


def beside_a_tokenizer(cell: Cell) -> Literal["", "generator", "classifier"]:
    """Return what a cell needs besides its tokenizer; empty if nothing."""
    if cell.metric == "gfid" or (cell.paper, cell.table) in _GENERATION:
        return "generator"
    return "classifier" if cell.metric in ("top1", "top1_margin") else ""


def needs_beside_a_tokenizer(cell: Cell) -> str:
    """Return the same in words."""
    kind = beside_a_tokenizer(cell)
    if kind == "generator":
        generator = cell.settings.get("generator") or "an image generator"
        return f"images drawn by {generator} on these tokens"
    return "a classifier fine-tuned on these tokens" if kind else ""


_GENERATION: Final = {("vqgan-lc", "4"), ("vqgan-lc", "5"), ("looc", "11")}
"""Here even usage is counted over drawn images."""


def _without(cell: Cell, lacking: str) -> Plan:
    return Plan(data_set=cell.dataset, test_set=cell.dataset, lacking=lacking)


def _with(cell: Cell, recipe: str, **options: Setting) -> Plan:
    return Plan(recipe=recipe, options=options, data_set=cell.dataset, test_set=cell.dataset)


def _looc(cell: Cell) -> Plan:
    if cell.dataset in SMALL_SETS:
        return _looc_small(cell)
    if cell.table == "text":
        return _without(cell, "a number from elsewhere, without its data set and protocol")
    return _looc_large(cell)


_SMALL_METHODS: Final = {
    "vqvae": ("vq_vae", 1024, 128),
    "sq-vae": ("sq_vae", 1024, 128),
    "cvq-vae": ("cvq", 1024, 128),
    "pq": ("pq", 256, 4),
    "looc": ("looc", 256, 4),
}
"""Preset, and the size taken where the row prints none."""


def _looc_small(cell: Cell) -> Plan:
    method, codes, dim = _SMALL_METHODS[cell.system]
    codes = _number(cell, "codebook_size", codes)
    dim = _number(cell, "codevector_dim", dim)
    recipe = f"{method}_{folder_of(cell.dataset)}"
    return _with(cell, recipe, num_codes=codes, dim=dim)


def _looc_large(cell: Cell) -> Plan:
    data_set = folder_of(cell.dataset)
    codes = _number(cell, "codebook_size", 256)
    if cell.table == "12":
        codes = 256 if cell.row == 1 else 1024
        options: Options = {"num_codes": codes}
        return Plan(recipe="looc_ffhq", options=options, data_set="ffhq", test_set="celeba")
    if cell.system == "looc":
        changes: dict[str, Setting] = {}
        if cell.settings.get("beta", 2) != 2:
            changes["beta"] = cell.settings["beta"]
        if cell.settings.get("codevector_dim") != 4:
            changes["dim"] = cell.settings["codevector_dim"]
        if cell.table == "7":
            changes["update"] = "none"
        return _with(cell, f"looc_{data_set}", num_codes=codes, **changes)
    if cell.system == "rq-vae":
        tokens: Options = {"tokens": 1024} if data_set == "imagenet" else {}  # 256 is the default
        return _with(cell, "rq_vae", data_set=data_set, num_codes=codes, **tokens)
    recipes = {"vqgan": "looc_vqgan", "vqvae": "looc_vqgan", "cvq-vae": "looc_cvq"}
    recipes |= {"pq": "looc_pq", "movq": "movq", "vit-vqgan": "vit_vqgan"}
    return _with(cell, recipes[cell.system], data_set=data_set, num_codes=codes)


def _dual(cell: Cell) -> Plan:
    data_set = folder_of(cell.dataset)
    if cell.table == "2":
        return _with(cell, "dual_table2", row=str(cell.settings["config"]).strip("()"))
    codes = _number(cell, "codebook_size", 512)
    if cell.system == "dual-codebook":
        return _with(cell, f"dual_{data_set}", num_codes=codes)
    recipes = {"vqvae": "dual_vq_vae", "vqgan": "dual_vqgan"}
    recipes |= {"gumbel-vq": "dual_gumbel", "cvq-vae": "dual_cvq"}
    return _with(cell, recipes[cell.system], data_set=data_set, num_codes=codes)


_LC_RECIPES: Final = {
    "vqgan": "lc_vqgan",
    "vqgan-fc": "lc_vqgan_fc",
    "vqgan-ema": "lc_vqgan_ema",
    "rq-vae": "rq_vae",
    "vit-vqgan": "vit_vqgan",
}


def _vqgan_lc(cell: Cell) -> Plan:
    tokens = _number(cell, "tokens", 256)
    if cell.system in _LC_RECIPES:
        options: dict[str, Setting] = {
            "data_set": cell.dataset,
            "num_codes": _number(cell, "codebook_size", 16_384),
        }
        if cell.system == "vit-vqgan" and tokens != 1024:
            return _without(cell, "ViT-VQGAN of 256 tokens is not among the recipes")
        if cell.system != "vit-vqgan" and tokens != 256:
            options["tokens"] = tokens
        return _with(cell, _LC_RECIPES[cell.system], **options)
    return _with(cell, f"vqgan_lc_{cell.dataset}", **_codebook(cell), **_ablations(cell))


def _codebook(cell: Cell) -> dict[str, Setting]:
    """Return where the codebook of a VQGAN-LC row would come from."""
    settings, codes = cell.settings, _number(cell, "codebook_size", 100_000)
    if settings.get("init") == "random":
        return {"random_codes": codes}
    source = settings.get("codebook_source") or cell.dataset
    model = str(settings.get("feature_model") or "ViT-L").lower()
    selected = "_selected" if settings.get("init") == "random-selection" else ""
    name = f"{source}_clip-{model}{selected}_{codes}"
    return {"codebook": f"data/codebooks/{name}.safetensors"}


def _ablations(cell: Cell) -> dict[str, Setting]:
    settings, changes = cell.settings, {}
    if settings.get("tokens", 256) != 256:
        changes["tokens"] = settings["tokens"]
    if settings.get("projector") is False:
        return changes | {"projector": False}
    if settings.get("static_codebook") is False:
        changes["frozen"] = False
    if settings.get("codevector_dim", 8) != 8:
        changes["dim"] = settings["codevector_dim"]
    return changes


def word_of(value: object) -> str:
    """Return a value as an option of a command has it."""
    return shlex.quote(value if isinstance(value, str) else json.dumps(value))


def _number(cell: Cell, name: str, default: int) -> int:
    value = cell.settings.get(name)
    return default if value is None else int(value)


_PAPERS: Final[Mapping[str, Callable[[Cell], Plan]]] = {
    "looc": _looc,
    "dual": _dual,
    "vqgan-lc": _vqgan_lc,
}
