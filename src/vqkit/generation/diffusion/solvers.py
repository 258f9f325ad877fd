"""From noise to latents along a flow: Euler, Heun, dopri5 for its ODE, Euler-Maruyama for its SDE.

Time runs from 1 (noise) to 0 (latents). Every sample is solved by itself: what shares a batch
changes nothing but rounding. diffusers' solvers of a flow are all of fixed steps.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
"""x (B, C, h, w) and times (B,) in [0, 1] to dx/dt."""

LAST: float = 0.04
"""Time at which the SDE ends and one step without noise is made (as in SiT's code)."""
MOST_STEPS = 10_000
LEAST_STEP = 1e-6
"""Near the rounding of times."""

# Dormand and Prince, "A family of embedded Runge-Kutta formulae" (1980): stages, then the error.
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_TIMES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def euler(velocity: Velocity, x: Tensor, steps: int) -> Tensor:
    """Solve the ODE by Euler's method in equal steps."""
    for now, then in _equal(steps):
        x = x + (then - now) * velocity(x, _times(x, now))
    return x


def heun(velocity: Velocity, x: Tensor, steps: int) -> Tensor:
    """Solve the ODE by Heun's method of order 2 in equal steps, of two evaluations each."""
    for now, then in _equal(steps):
        slope = velocity(x, _times(x, now))
        ahead = velocity(x + (then - now) * slope, _times(x, then))
        x = x + (then - now) / 2 * (slope + ahead)
    return x


def dopri5(velocity: Velocity, x: Tensor, *, atol: float, rtol: float) -> Tensor:
    """Solve the ODE with steps that keep each sample's error below atol + rtol · |x|.

    Raises:
        ValueError: steps without number or end: the velocity is not finite, or the bounds are too
            small for it.
    """
    left = x.new_ones(len(x))  # time still to go
    size = x.new_full((len(x),), 0.05)
    slope = velocity(x, left)
    for _ in range(MOST_STEPS):
        if not bool((left > 0).any()):
            return x
        step = torch.minimum(size, left)  # 0 for samples that have arrived
        if bool(((step < LEAST_STEP) & (step < left)).any()):
            break
        new, last, error = _stage(velocity, x, slope, left, step, atol, rtol)
        good = error <= 1
        x, slope = _where(good, new, x), _where(good, last, slope)
        left = torch.where(good, torch.where(step == left, 0.0, left - step), left)
        size = step * (0.9 * error.clamp(min=1e-10) ** -0.2).clamp(0.2, 10).nan_to_num(0.2)
    raise ValueError(
        f"atol={atol}, rtol={rtol}: dopri5 needs steps without an end; the bounds are too small, "
        "or the model predicts NaN"
    )


def _stage(
    velocity: Velocity,
    x: Tensor,
    first: Tensor,
    now: Tensor,
    step: Tensor,
    atol: float,
    rtol: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Try one step back in time: the new x, its slope, and its error as a share of the bound."""
    slopes, new = [first], x
    back = -step[:, None, None, None]
    for time, weights in zip(_TIMES, _STAGES, strict=True):
        new = x + back * _sum(weights, slopes)
        slopes.append(velocity(new, now - time * step))
    bound = atol + rtol * torch.maximum(x.abs(), new.abs())
    error = (back * _sum(_ERROR, slopes) / bound).square().mean(dim=(1, 2, 3)).sqrt()
    return new, slopes[-1], error


def sde(
    velocity: Velocity,
    x: Tensor,
    steps: int,
    *,
    diffusion: float,
    draw: Callable[[], Tensor],
) -> Tensor:
    """Solve the reverse SDE by Euler and Maruyama (SiT, arXiv:2401.08740, section 2).

    dx = (v - w/2 · score) dt + √w dW with w(t) = diffusion · t, in steps - 1 equal steps to time
    0.04, and one step of the ODE from there. The distribution of x at every time is that of the
    flow, whatever w is.

    SiT's code calls w/2 its diffusion: `diffusion form` "sigma" with `diffusion norm` n (1 unless
    said otherwise) is `diffusion` = 2 n here. Its last step "Euler" is ours; its usual one, "Mean",
    has the score's part as well.

    Args:
        velocity: Of the flow.
        x: (B, C, h, w) noise.
        steps: Evaluations.
        diffusion: Times t, the variance put in per unit of time.
        draw: Returns fresh noise (B, C, h, w).
    """
    times = torch.linspace(1, LAST, steps).tolist() if steps > 1 else [1.0]
    for now, then in pairwise(times):
        v = velocity(x, _times(x, now))
        push = v - 0.5 * diffusion * now * score(x, v, now)
        noise = draw() * (diffusion * now * (now - then)) ** 0.5
        x = x + (then - now) * push + noise
    return x - times[-1] * velocity(x, _times(x, times[-1]))


def score(x: Tensor, velocity: Tensor, time: float) -> Tensor:
    """Return the gradient of log p(x) at a time in (0, 1] from the velocity (SiT, section 2).

    On the linear path the noise in x is x + (1 - t) v, and the score is less that over t.
    """
    return -(x + (1 - time) * velocity) / time


def _where(rows: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(rows[:, None, None, None], yes, no)


def _equal(steps: int) -> list[tuple[float, float]]:
    times = [1 - n / steps for n in range(steps)] + [0.0]
    return list(pairwise(times))


def _times(x: Tensor, time: float) -> Tensor:
    return x.new_full((len(x),), time)


def _sum(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    total = weights[0] * slopes[0]
    for weight, slope in zip(weights[1:], slopes[1:], strict=True):
        total = total + weight * slope
    return total
