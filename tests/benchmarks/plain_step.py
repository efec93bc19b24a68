"""A training step as a good tutorial writes it: torch's own modules, autograd and AdamW, one process, no checkpoints.

The names of the modules are those of the product's methods, so that both can start from the same weights.
"""

import copy
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS = 1500
"""Length of the plain loop's own learning-rate schedule."""


def head(widths: list[int], *, bias: bool, last_norm: bool) -> nn.Sequential:
    """Return linear layers with batch norm and ReLU between them; `last_norm`: end in a batch norm without scale."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out, bias=bias), nn.BatchNorm1d(fan_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-2], *([nn.BatchNorm1d(widths[-1], affine=False)] if last_norm else []))


class Network(nn.Module):
    """An encoder and its projector."""

    def __init__(self, encoder: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, projector

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.projector(self.encoder(x))
        return out


class PlainSimCLR(nn.Module):
    """SimCLR: a pass for each view, and the cross-entropy of a matrix of similarities without its diagonal."""

    def __init__(self, encoder: nn.Module, options: Mapping[str, Any]) -> None:
        super().__init__()
        widths = [encoder.num_features, options["hidden"], options["dim"]]
        self.student = Network(encoder, head(widths, bias=False, last_norm=True))
        self.temperature = options["temperature"]

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        z = F.normalize(torch.cat([self.student(x1), self.student(x2)]), dim=1)
        similarities = z @ z.T / self.temperature
        similarities = similarities.masked_fill(torch.eye(len(z), dtype=torch.bool), float("-inf"))
        return F.cross_entropy(similarities, torch.arange(len(z)).roll(len(x1)))


class WithTeacher(nn.Module):
    """A student, a predictor, and a teacher that follows the student after every step."""

    def __init__(
        self, encoder: nn.Module, options: Mapping[str, Any], *, bias: bool, norms: tuple[bool, bool], layers: int = 2
    ) -> None:
        super().__init__()
        hidden, dim = options["hidden"], options["dim"]
        widths = [encoder.num_features, *[hidden] * (layers - 1), dim]
        self.student = Network(encoder, head(widths, bias=bias, last_norm=norms[0]))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.predictor = head([dim, hidden, dim], bias=bias, last_norm=norms[1])
        self.momentum = options["momentum"]

    def passes(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the student's predictions of both views, then the teacher's outputs, a pass for each of the four."""
        q1, q2 = self.predictor(self.student(x1)), self.predictor(self.student(x2))
        with torch.no_grad():
            k1, k2 = self.teacher(x1), self.teacher(x2)
        return q1, q2, k1, k2

    @torch.no_grad()
    def follow(self) -> None:
        """Make the EMA update, parameter by parameter."""
        for to, towards in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            to.data = to.data * self.momentum + towards.data * (1 - self.momentum)


class PlainMoCoV3(WithTeacher):
    """MoCo v3, with the loss of its paper's algorithm 1."""

    def __init__(self, encoder: nn.Module, options: Mapping[str, Any]) -> None:
        norms = (True, options["predictor_norm"])
        super().__init__(encoder, options, bias=False, norms=norms, layers=options["projector_layers"])
        self.temperature = options["temperature"]

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        q1, q2, k1, k2 = self.passes(x1, x2)
        return self.contrast(q1, k2) + self.contrast(q2, k1)

    def contrast(self, q: Tensor, k: Tensor) -> Tensor:
        """Return the cross-entropy of queries against all keys, their own being the right one."""
        logits = F.normalize(q, dim=1) @ F.normalize(k, dim=1).T / self.temperature
        loss: Tensor = F.cross_entropy(logits, torch.arange(len(q))) * (2 * self.temperature)
        return loss


class PlainBYOL(WithTeacher):
    """BYOL: the distance of normalised predictions from the teacher's outputs of the other view."""

    def __init__(self, encoder: nn.Module, options: Mapping[str, Any]) -> None:
        super().__init__(encoder, options, bias=True, norms=(options["projector_norm"], False))

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        p1, p2, t1, t2 = self.passes(x1, x2)
        distances = (2 - 2 * F.cosine_similarity(p1, t2)) + (2 - 2 * F.cosine_similarity(p2, t1))
        return distances.mean()


PLAIN: dict[str, type[nn.Module]] = {"simclr": PlainSimCLR, "mocov3": PlainMoCoV3, "byol": PlainBYOL}


def plain_step(net: nn.Module, lr: float, betas: tuple[float, float]) -> Callable[[Tensor, Tensor], float]:
    """Return a function that makes one weight update from two views, [B, 3, S, S] each, and returns the loss."""
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=lr, betas=betas, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)

    def step(x1: Tensor, x2: Tensor) -> float:
        loss = net(x1, x2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if isinstance(net, WithTeacher):
            net.follow()
        return float(loss.item())

    return step
