"""Values that a method cannot work with are refused before a run is started: the value, the rule and the remedy."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dist_ssl.build import check
from dist_ssl.config.instantiate import instantiate
from dist_ssl.distributed.world import World
from dist_ssl.errors import ConfigError
from dist_ssl.methods.rotation import Rotation
from dist_ssl.models.encoders import TinyResNet
from dist_ssl.protocols.method import Method
from launch import settings
from launch.run_dir import PROJECT

HELD = ("batch_size=12", "lanes=12", "threads=1", "decode_threads=1", "data.source=null", "schedule.image_size=16")
LEAST_1, LEAST_2 = "is not possible: it must be at least 1.", "is not possible: it must be at least 2."
REFUSED: dict[str, tuple[str, Any, str]] = {
    "a temperature of 0": ("simclr.temperature", 0.0, "is not possible: it must be more than 0."),
    "no width": ("byol.dim", 0, LEAST_1),
    "no bottleneck": ("simsiam.hidden", 0, LEAST_1),
    "a negative weight": ("vicreg.covariance", -1.0, "is not possible: it must be at least 0."),
    "no slots": ("mocov2.slots", 0, LEAST_1),
    "a teacher that runs away": ("mocov3.momentum", 1.5, "is not possible: it must be a number from 0 to 1."),
    "one view of SwAV": ("swav.num_views", 1, LEAST_2),
    "no iterations": ("swav.iterations", 0, LEAST_1),
    "one view of DINO": ("dino.num_views", 1, LEAST_2),
    "fewer local views than none of SwAV": ("swav.local_views", -1, "is not possible: it must be at least 0."),
    "fewer local views than none of DINO": ("dino.local_views", -1, "is not possible: it must be at least 0."),
    "fewer iterations than none": ("dino.sinkhorn", -1, "is not possible: it must be at least 0."),
    "a cold teacher": ("dino.teacher_temperature", 0.0, "is not possible: it must be more than 0."),
    "a teacher that begins cold": ("dino.teacher_rises_from", 0.0, "is not possible: it must be more than 0."),
    "no tiles": ("fast_moco.parts", 0, LEAST_1),
    "more tiles than there are": (
        "fast_moco.combined",
        5,
        "is not possible: it must be from 1 to 4, the tiles of a view.",
    ),
    "one patch": ("emp_ssl.patches", 1, LEAST_2),
    "an empty group": ("emp_ssl.loss_group", 0, LEAST_1),
    "an exponent that changes nothing": (
        "single_branch.exponent",
        1.0,
        "is not possible: it must be more than 0 and less",
    ),
    "no distribution": ("single_branch.mix_alpha", 0.0, "is not possible: it must be from 0.001 to 2."),
    "a distribution that is not drawn truly": (
        "single_branch.mix_alpha",
        4.0,
        "is not possible: it must be from 0.001 to 2.",
    ),
    "codes too sharp for any arithmetic": ("swav.eps", 0.001, "is not possible: it must be at least 0.003."),
}
PLANS = {
    "rows of unmixed images by the gradient of mixed ones": (
        ("method=single_branch", "method.update=pull", "method.update_on_mixed=false"),
        "method.update_on_mixed=false is not possible with method.update=pull",
    ),
    "rows of unmixed images where none is mixed": (
        ("method=single_branch", "method.mix=false", "method.update_on_mixed=false"),
        "method.update_on_mixed=false changes nothing with method.mix=false",
    ),
    "a rate without end": (("optim.base_lr=inf",), "optim.base_lr=inf is not possible: it takes a finite number."),
    "tiles that do not fit": (
        ("method=fast_moco", "method.parts=3"),
        "Views of 16 px cannot be split into method.parts=3 tiles along a side.\n  Use schedule.image_size=15",
    ),
    "turned copies that grow": (
        ("method=simclr", "aux=rotation", "aux.side=20"),
        "aux.side=20 is not possible: turned views of 16 px are shrunk to it.\n  Use aux.side=8",
    ),
    "turned copies that patches do not cover": (
        ("method=simclr", "encoder=vit_tiny_demo", "aux=rotation", "aux.side=10"),
        "aux.side=10 does not fit the encoder",
    ),
    "tiles that patches do not cover": (
        ("method=fast_moco", "encoder=vit_tiny_demo", "schedule.image_size=20", "probe.crop=20"),
        "The side of a tile, schedule.image_size/method.parts=10 does not fit the encoder",
    ),
    "targets too sharp for any arithmetic": (
        ("method=dino", "method.sinkhorn=3", "method.teacher_temperature=0.001"),
        "method.teacher_temperature=0.001 is not possible: it must be at least 0.003.",
    ),
    "a crop of nothing": (
        ("views.view1.crop_min=0",),
        "views.view1.crop_min=0 is not possible: it must be more than 0 and",
    ),
    "more than always": (
        ("views.view2.jitter_p=2",),
        "views.view2.jitter_p=2 is not possible: it must be a number from 0",
    ),
    "a norm of less than nothing": (("engine.clip=-1",), "engine.clip=-1 is not possible: it must be more than 0."),
    "an encoder without channels": (("encoder.width=0",), "encoder.width=0 is not possible: it must be at least 1."),
    "an optimizer that torch refuses": (("optim.betas=[1.5,0.9]",), "optim.betas=1.5 is not possible: it must be two"),
    "turned copies that patches below a layer do not cover": (
        ("method=emp_ssl", "encoder=vit_tiny_demo", "aux=rotation", "aux.side=10"),
        "aux.side=10 does not fit the encoder",
    ),
    "a group of a wrapped method": (
        ("method=emp_ssl", "aux=rotation", "method.loss_group=5"),
        "batch_size=12 is no multiple of method.loss_group=5.\n  Use batch_size=10",
    ),
}


def method(name: str, **other: Any) -> Method:
    """A method of the config tree with another value, without memory."""
    node = yaml.safe_load((PROJECT / "configs" / "method" / f"{name}.yaml").read_text())
    with torch.device("meta"):
        made: Method = instantiate(
            {**node, **other}, "method", offered={"num_samples": 60}, encoder=TinyResNet(4), world=World()
        )
    return made


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_method_cannot_work_with_is_refused(case: str) -> None:
    place, value, message = REFUSED[case]
    name, _, key = place.partition(".")
    with pytest.raises(ConfigError) as refusal:
        method(name, **{key: value})
    assert f"method.{key}={value:g} {message}" in str(refusal.value)


@pytest.mark.parametrize(("other", "message"), [({"turned": 0}, "aux.turned=0"), ({"weight": -0.5}, "aux.weight=-0.5")])
def test_what_the_task_cannot_work_with_is_refused(other: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Rotation(method("simclr"), world=World(), **other)


@pytest.mark.parametrize("case", PLANS)
def test_what_does_not_fit_the_plan_is_refused(case: str, demo_shards: Path) -> None:
    words, message = PLANS[case]
    with pytest.raises(ConfigError) as refusal:
        check(settings.compose([*HELD, f"data.path={demo_shards}", *words], PROJECT / "configs"), ranks=1)
    assert message in str(refusal.value)
