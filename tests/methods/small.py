"""Small methods and batches for the tests of single methods."""

from typing import Any

import torch
import yaml
from torch import Tensor, nn

from dist_ssl.config.instantiate import instantiate
from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Draws
from dist_ssl.core.plan import Hyperparameters
from dist_ssl.distributed.world import World
from dist_ssl.models.encoders import TinyResNet
from dist_ssl.models.norm import BatchNorm
from dist_ssl.protocols.method import Embeddings, LossOutput, Method
from launch.run_dir import PROJECT

HYPER = Hyperparameters({"teacher_temperature": torch.tensor(0.04, dtype=torch.float64)})
"""All that losses read."""


def method(name: str, **other: Any) -> Any:
    """A method of the config tree around a tiny encoder, in double precision, always the same."""
    node = yaml.safe_load((PROJECT / "configs" / "method" / f"{name}.yaml").read_text())
    torch.manual_seed(0)
    made: Method = instantiate(
        {**node, **other}, "method", offered={"num_samples": 120}, encoder=TinyResNet(4), world=World()
    )
    return made.double().train()


def published(name: str, **other: Any) -> Any:
    """A method with the defaults of its class, without memory."""
    target = yaml.safe_load((PROJECT / "configs" / "method" / f"{name}.yaml").read_text())["_target_"]
    with torch.device("meta"):
        return instantiate(
            {"_target_": target, **other}, "method", offered={"num_samples": 60}, encoder=TinyResNet(4), world=World()
        )


def batch(views: int = 2, size: int = 6, invalid: tuple[int, ...] = (), first: int = 0, seed: int = 0) -> Batch:
    """Random views of 12 px of the samples from number `first` on; those at the places `invalid` are replacements."""
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randn(size, 3, 12, 12, generator=generator, dtype=torch.float64) for _ in range(views)]
    valid = torch.ones(size, dtype=torch.bool)
    valid[list(invalid)] = False
    return Batch(images, torch.arange(first, first + size), valid, None, Draws(0), step=0)


def forward(method: Method, batch: Batch) -> Embeddings:
    """All embeddings of the batch's views."""
    found: Embeddings = method(*batch.parts(1)[0])
    return found


def step(method: Method, batch: Batch) -> LossOutput:
    """One step without a weight update: the loss, and memory moved."""
    out = method.loss(forward(method, batch), batch, HYPER)
    method.remember(out, batch, HYPER)
    return out


def gradients(method: Method, batch: Batch, out: LossOutput) -> dict[str, Tensor]:
    """The student's gradients of a loss."""
    method.zero_grad()
    out.loss.backward()  # type: ignore[no-untyped-call]
    return {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}


def layout(head: nn.Module) -> str:
    """A head in one line: `8-16+ BN ReLU 16-4`; + is a bias, bn a batch norm without scale and shift."""
    words = []
    for layer in head.children():
        if isinstance(layer, nn.Linear):
            words.append(f"{layer.in_features}-{layer.out_features}{'' if layer.bias is None else '+'}")
        elif isinstance(layer, BatchNorm):
            words.append("bn" if layer.weight is None else "BN")
        else:
            words.append(type(layer).__name__)
    return " ".join(words)
