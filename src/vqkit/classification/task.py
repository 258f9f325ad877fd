"""Training a classifier on a token set, for `training.fit`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqkit.classification.augment import augmented
from vqkit.classification.classifier import Card, TokenClassifier, open_backbone
from vqkit.classification.evaluation import measure
from vqkit.classification.maps import Maps
from vqkit.config import require
from vqkit.config.classification import ClassifierRun, ProbeClassifier, ViTClassifier
from vqkit.tokens import TokenBatch, TokenSet, TokenStream


class ClassifierTask:
    """What `training.fit` needs to train a classifier.

    Args:
        run: all settings.
        tokens: the token set to train on, with labels.
        maps: of its tokenizer.
        held_out: another token set, on which top-1 is measured at every checkpoint.
        rank: of this process, of `world_size`.
        world_size: number of processes.
    """

    model: nn.Module

    def __init__(
        self,
        run: ClassifierRun,
        tokens: TokenSet,
        maps: Maps,
        *,
        held_out: TokenSet | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.run, self.tokens, self.maps, self.held_out = run, tokens, maps, held_out
        self.card = card_of(tokens, maps)
        if held_out is not None:
            check_same_classes(held_out, self.card, maps, "held_out")
        self.model = self.classifier = self._build()
        self.stream = TokenStream(
            tokens,
            run.optim.batch_size,
            run.seed,
            rank,
            world_size,
            latents=run.source == "latents",
        )

    def _build(self) -> TokenClassifier:
        config, backbone = self.run.model, None
        if isinstance(config, ProbeClassifier) and config.backbone is not None:
            backbone = open_backbone(config.backbone, self.card)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.run.seed)
            model = TokenClassifier(config, self.card, backbone=backbone)
        if isinstance(config, ViTClassifier) and config.pretrained is not None:
            model.load_pretrained(config.pretrained)
        if backbone is None:
            mean, std = self.maps.statistics(self.tokens)
            model.mean.copy_(mean)
            model.std.copy_(std)
        return model

    def batch(self, step: int) -> TokenBatch:
        """Return this process's share of global batch `step`."""
        return self.stream.batch(step)

    def losses(self, batch: TokenBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the mean cross-entropy to the targets; top-1 too, where no maps are mixed."""
        device = self.classifier.mean.device
        maps = self.maps.of(batch.ids, batch.latents, device)
        maps = self.classifier.normalised(maps)
        settings = self.run.augment
        labels = batch.labels.to(device)
        maps, targets = augmented(maps, labels, self.card.num_classes, settings, generator)
        logits = self.model(maps).float()
        losses = {"loss": -(targets * logits.log_softmax(1)).sum(1).mean()}
        if not (settings.mixup or settings.cutmix):
            losses["top1"] = (logits.argmax(1) == labels).float().mean()
        return losses

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return the optimizer's groups: each layer's own rate; vectors and positions no decay."""
        net = self.classifier.net
        last = max(net.layer_of(name) for name, _ in net.named_parameters())
        groups: dict[tuple[int, bool], dict[str, Any]] = {}
        for name, parameter in net.named_parameters():
            if not parameter.requires_grad:
                continue
            plain = parameter.ndim < 2 or name in ("cls_token", "pos_embed")
            layer = net.layer_of(name)
            group = groups.setdefault((layer, plain), {"params": []})
            group["params"].append(parameter)
            group["lr_scale"] = self.run.layer_decay ** (last - layer)
            if plain:
                group["weight_decay"] = 0.0
        return list(groups.values())

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Return top-1 on the held-out tokens, if there are any."""
        if self.held_out is None:
            return {}
        assert isinstance(model, TokenClassifier)
        found = measure(model, self.maps, self.held_out)
        return {"top1": found.top1, "loss": found.loss}

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the classifier that `model` is."""
        assert isinstance(model, TokenClassifier)
        model.save(folder)

    def facts(self) -> dict[str, Any]:
        """Return what must be the same when the run is continued."""
        held_out = self.held_out
        return {
            "tokens": self.tokens.fingerprint,
            "held_out": held_out.fingerprint if held_out is not None else None,
        }


def card_of(tokens: TokenSet, maps: Maps) -> Card:
    """Return the card of a classifier of a token set; one without labels is a `ValueError`."""
    maps.check(tokens, "tokens")
    assert tokens.grid is not None  # checked there
    require(tokens.num_classes > 1, "tokens", "have no labels to learn; tokenize labelled images")
    unlabelled = int((tokens.all_labels < 0).sum())
    require(unlabelled == 0, "tokens", f"{unlabelled:,} images have no label; leave them out")
    return Card(
        source=maps.source,
        channels=maps.channels,
        grid=tokens.grid,
        label_names=tokens.label_names,
        tokenizer=tokens.tokenizer,
        tokens=tokens.fingerprint,
    )


def check_same_classes(tokens: TokenSet, card: Card, maps: Maps, name: str) -> None:
    """Raise `ValueError` unless a classifier with this card can be measured on a token set."""
    maps.check(tokens, name)
    require(tokens.grid == card.grid, name, f"has grid {tokens.grid}, training had {card.grid}")
    names = tokens.label_names
    same = names == card.label_names[: len(names)] and len(names) > 0
    require(same, name, "has other classes than the training; its labels would mean other things")
    unlabelled = int((tokens.all_labels < 0).sum())
    require(unlabelled == 0, name, f"{unlabelled:,} images have no label; leave them out")
    require(tokens.fingerprint != card.tokens, name, "is the token set of the training")
