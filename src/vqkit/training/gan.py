"""The losses of generator and discriminator, as functions of logits; means in float32.

`real` and `fake` are the discriminator's logits D(x) of images and D(x̂) of reconstructions, of any
shape: a mean over all of them is the mean over images and patches.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vqkit.config.adversarial import GanLoss
from vqkit.config.core import check_choice


def generator_loss(kind: GanLoss, fake: Tensor) -> Tensor:
    """Return what the generator minimises, a scalar.

    `hinge`: -mean D(x̂) (Lim and Ye 2017, arXiv:1705.02894). `non_saturating`:
    mean softplus(-D(x̂)) = -mean log sigmoid(D(x̂)) (Goodfellow et al. 2014, arXiv:1406.2661).
    """
    check_choice("kind", kind, GanLoss)
    fake = fake.float()
    return -fake.mean() if kind == "hinge" else F.softplus(-fake).mean()


def discriminator_loss(kind: GanLoss, real: Tensor, fake: Tensor) -> Tensor:
    """Return what the discriminator minimises, a scalar; half the sum of two means, as VQGAN does.

    `hinge`: ½ mean relu(1 - D(x)) + ½ mean relu(1 + D(x̂)) (arXiv:1705.02894; Dual's code).
    `non_saturating`, the logistic loss: ½ mean softplus(-D(x)) + ½ mean softplus(D(x̂)), that is
    minus half of the value log σ(D(x)) + log(1 - σ(D(x̂))) that arXiv:1406.2661 maximises.
    """
    check_choice("kind", kind, GanLoss)
    real, fake = real.float(), fake.float()
    if kind == "hinge":
        return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
    return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2


def lecam(real: Tensor, fake: Tensor, mean_real: Tensor, mean_fake: Tensor) -> Tensor:
    """Return LeCam's regulariser of the discriminator, a scalar (Tseng et al., arXiv:2104.03310).

    mean relu(D(x) - α_F)² + mean relu(α_R - D(x̂))², where α_R and α_F (`mean_real`, `mean_fake`,
    scalars without gradient) are running means of the logits of real and fake images. The paper
    writes it without relu, its code has it: what is already beyond the other mean is left alone.
    """
    above = F.relu(real.float() - mean_fake.detach())
    below = F.relu(mean_real.detach() - fake.float())
    return above.square().mean() + below.square().mean()


def running_mean(mean: Tensor, value: Tensor, decay: float, updates: int) -> Tensor:
    """Return a running mean of LeCam after one more value; the first is the value itself.

    α_n = Σ_i decay^(n-i) v_i / Σ_i decay^(n-i) over i = 1 … n: an exponential mean without the pull
    towards its start, as in the paper's code. `updates` is n - 1, how many `mean` has seen.
    """
    weight = (1 - decay) / (1 - decay ** (updates + 1))
    return torch.lerp(mean, value.detach().float(), weight)


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Return ½ mean over images of ‖∇ D(x)‖², a scalar (R1, Mescheder et al., arXiv:1801.04406).

    R1 with γ = 1: multiply by γ. D(x) is the mean of an image's logits, as in the losses;
    for one logit an image this is the paper's. The graph is kept, so that the penalty can be
    differentiated with respect to the discriminator.

    Args:
        logits: (B, ...) of real images, with their graph.
        images: (B, C, H, W) that they were computed from; must require a gradient.

    Raises:
        ValueError: `images` require no gradient.
    """
    if not images.requires_grad:
        raise ValueError("images.requires_grad=False: R1 is a gradient at the images; set it")
    judged = logits.float().flatten(1).mean(1).sum()
    (gradient,) = torch.autograd.grad(judged, images, create_graph=True)
    return gradient.float().square().flatten(1).sum(1).mean() / 2


def accuracy(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Return the shares of real logits above 0 and of fake logits below 0, scalars in [0, 1]."""
    return (real > 0).float().mean(), (fake < 0).float().mean()
