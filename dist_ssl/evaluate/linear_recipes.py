"""The protocols of a linear classifier of frozen features: how it is trained, and on which views of an image.

All are SGD with momentum 0.9 on the cross-entropy; the encoder is in eval mode and does not change. The published ones
train as their authors' code does, with its learning rate and its weight decay, on features as they are:

    moco         MoCo v1 and v2 (He 2020, arXiv 1911.05722; Chen 2020, arXiv 2003.04297)
    mocov3       MoCo v3, ResNet-50 (Chen, Xie, He 2021, arXiv 2104.02057); mocov3_vit: its vision transformers
    swav         SwAV (Caron 2020, arXiv 2006.09882); effssl: the same in 25 epochs (Addepalli 2022, arXiv 2210.09866)
    emp_ssl      EMP-SSL (Tong 2023, arXiv 2304.03977), on the mean features of patches; its first weights are torch's

`crops` are new in every epoch: torchvision's RandomResizedCrop (8 % to 100 % of the area) and a flip; the classifier is
tested on the centre. An epoch computes the features of the whole training split, which no cached form can leave out.
`fast` computes the features of the centres once: it leaves out the random crops, so its number is not the papers'.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from dist_ssl.schedules.half_cosine import half_cosine

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Learning rates of the fast form: they span what is stable for one shared direction of 4,096 features and for none."""
MULTIPLES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Learning rates of a sweep of a published protocol, as multiples of its own."""
FIRST_STD = 0.01
"""Standard deviation of the first weights in the authors' code."""
DROP = 0.1
"""Factor of the learning rate at each of `drops`."""


@dataclass(frozen=True)
class LinearRecipe:
    """How a linear classifier is trained.

    `rates`: peak learning rates, of a whole batch; where there are several, one is chosen on a tenth of the training
    split. `batch`: samples of a step; `decay`: weight decay; `first_std`: standard deviation of the first weights, 0:
    zeros; `standardise`: whether each column of the features is standardised. The learning rate falls by half a cosine,
    `by_epoch`: at the end of each epoch, else at every step; `drops`: it falls to a tenth at these epochs instead.
    """

    views: Literal["centre", "crops", "patches"]
    epochs: int
    batch: int
    rates: tuple[float, ...]
    decay: float = 0.0
    first_std: float = FIRST_STD
    standardise: bool = False
    by_epoch: bool = True
    drops: tuple[int, ...] = ()

    def factor(self, epoch: int, step: int, steps: int) -> float:
        """Return the learning rate at a step of an epoch (both from 0, `steps` in the epoch) as a share of its peak."""
        if self.drops:
            return math.prod(DROP for drop in self.drops if epoch >= drop)
        at = epoch * steps + (0 if self.by_epoch else step)
        return half_cosine(1.0, 0.0, at, self.epochs * steps)

    @property
    def swept(self) -> "LinearRecipe":
        """The same with several learning rates."""
        return replace(self, rates=tuple(multiple * self.rates[0] for multiple in MULTIPLES))


FAST = LinearRecipe("centre", 100, 256, RATES, first_std=0.0, standardise=True, by_epoch=False)
LINEAR: dict[str, LinearRecipe] = {
    "fast": FAST,
    "moco": LinearRecipe("crops", 100, 256, (30.0,), drops=(60, 80)),
    "mocov3": LinearRecipe("crops", 90, 1024, (0.4,)),
    "mocov3_vit": LinearRecipe("crops", 90, 1024, (12.0,)),
    "swav": LinearRecipe("crops", 100, 256, (0.3,), decay=1e-6),
    "effssl": LinearRecipe("crops", 25, 256, (0.3,), decay=1e-6),
    "emp_ssl": LinearRecipe("patches", 100, 100, (0.03,), decay=5e-5),
}
"""The protocols by name."""
