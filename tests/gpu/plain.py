"""The loop to compare with: MoCo v3 as one would write it, torch's batch norm, plain AdamW, a PIL loader."""

import copy
import io
import random
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import timm
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from shards.picture_rules import IMAGENET

MEAN, STD = IMAGENET


def head(widths: Sequence[int], last_norm: bool) -> nn.Sequential:
    """Linear layers with batch norm and ReLU between them; `last_norm` ends them with a batch norm."""
    layers: list[nn.Module] = []
    for number, (fan_in, fan_out) in enumerate(pairwise(widths)):
        last = number == len(widths) - 2
        layers.append(nn.Linear(fan_in, fan_out, bias=False))
        layers += [nn.BatchNorm1d(fan_out, affine=not last)] if last_norm or not last else []
        layers += [] if last else [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class PlainMoCo(nn.Module):
    """MoCo v3 of one device around an encoder of timm."""

    def __init__(self, encoder: str, hidden: int, dim: int, temperature: float, **options: Any) -> None:
        super().__init__()
        net: Any = timm.create_model(encoder, num_classes=0, **options)
        transformer = encoder.startswith("vit")
        widths = [net.num_features, *[hidden] * (2 if transformer else 1), dim]
        self.student = nn.Sequential(net, head(widths, last_norm=True))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.predictor = head([dim, hidden, dim], last_norm=transformer)
        self.temperature = temperature

    def forward(self, views: list[Tensor]) -> Tensor:
        """The loss of two views."""
        both = torch.cat(views)
        q1, q2 = self.predictor(self.student(both)).chunk(2)
        with torch.no_grad():
            k1, k2 = self.teacher(both).chunk(2)
        return self._contrast(q1, k2) + self._contrast(q2, k1)

    def _contrast(self, q: Tensor, k: Tensor) -> Tensor:
        logits = F.normalize(q.float(), dim=1) @ F.normalize(k.float(), dim=1).T / self.temperature
        return 2 * self.temperature * F.cross_entropy(logits, torch.arange(len(q), device=q.device))


class PlainLoop:
    """Its step. `compute`: what autocast casts to, or None."""

    def __init__(self, net: PlainMoCo, device: torch.device, compute: torch.dtype | None) -> None:
        self.net, self.device, self.compute = net.to(device).to(memory_format=torch.channels_last), device, compute
        learns = [p for p in self.net.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learns, lr=1e-4, weight_decay=0.1)

    def step(self, views: list[Tensor]) -> Tensor:
        """One weight update; the loss, still on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, self.compute, enabled=self.compute is not None):
            loss: Tensor = self.net(views)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for own, other in zip(self.net.teacher.parameters(), self.net.student.parameters(), strict=True):
                own.lerp_(other, 0.01)
        return loss.detach()


class Blur:
    """PIL's Gaussian blur at a random standard deviation."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


class Pictures(Dataset[tuple[Tensor, Tensor]]):
    """Two augmented views of every picture by PIL and torchvision; pictures come `times` times."""

    def __init__(self, pictures: Sequence[bytes], side: int, times: int) -> None:
        from torchvision import transforms as tv

        self.pictures, self.times = pictures, times
        self.change = tv.Compose(
            [
                tv.RandomResizedCrop(side, scale=(0.2, 1.0)),
                tv.RandomApply([tv.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
                tv.RandomGrayscale(p=0.2),
                tv.RandomApply([Blur()], p=0.5),
                tv.RandomHorizontalFlip(),
                tv.ToTensor(),
                tv.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.pictures) * self.times

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        image = Image.open(io.BytesIO(self.pictures[number % len(self.pictures)])).convert("RGB")
        return self.change(image), self.change(image)


def batches(data: Pictures, size: int, workers: int, device: torch.device) -> Iterator[list[Tensor]]:
    """Batches on the device, for ever."""
    pin = device.type == "cuda"
    loader = DataLoader(
        data, size, shuffle=True, num_workers=workers, pin_memory=pin, drop_last=True, persistent_workers=workers > 0
    )
    while True:
        for views in loader:
            yield [view.to(device, non_blocking=pin).contiguous(memory_format=torch.channels_last) for view in views]
