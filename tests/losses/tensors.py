"""What the tests of the losses share: repeatable random tensors, and gradients of a loss with respect to them."""

from collections.abc import Callable

import torch
from torch import Tensor


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def alone(x: Tensor) -> Tensor:
    """A sum over the ranks of a job of one."""
    return x


def agreeing(agreement: float, spread: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Outputs [64, 8] of two views with this share, 0 to 1, of their spread in common; rows and columns of mean 0."""
    drawn = normal(64, 2, 8)
    drawn = drawn - drawn.mean(0)
    drawn = drawn - drawn.mean(2, keepdim=True)
    one, other = drawn.unbind(1)
    other = other - (one * other).sum() / one.square().sum() * one
    other = other / other.norm() * one.norm()
    return spread * one, spread * (agreement * one + (1 - agreement**2) ** 0.5 * other)


def growth(loss: Callable[..., Tensor], *outputs: Tensor) -> float:
    """How fast a step down the loss moves outputs away from where they have no spread; below 0: towards it."""
    return -sum(float((x * g).sum()) for x, g in zip(outputs, with_gradients(loss, *outputs)[1:], strict=True))


def with_gradients(loss: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The loss, summed, and its gradients with respect to the inputs."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = loss(*leaves).sum()
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def close(own: list[Tensor], expected: list[Tensor], tolerance: float = 1e-11) -> None:
    """Assert that two lists of tensors are equal up to rounding."""
    assert len(own) == len(expected)
    for mine, theirs in zip(own, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


def plain_divergence(logits: Tensor, exponent: float, divergence: str, through: bool) -> Tensor:
    """KL(p || u) or KL(u || p) of p = softmax(logits) and u ~ p^exponent from probabilities, row by row."""
    p = logits.softmax(1)
    u = p**exponent / (p**exponent).sum(1, keepdim=True)
    u = u if through else u.detach()
    a, b = (p, u) if divergence == "p||u" else (u, p)
    return (a * (a / b).log()).sum(1)
