"""The heads of all methods as published, in their classes' defaults."""

import pytest
from torch import nn

from dist_ssl.errors import ConfigError
from dist_ssl.models.norm import BatchNorm
from tests.methods.small import layout, method, published

PROJECTORS = {
    "simclr": "32-2048 BN ReLU 2048-128 bn",
    "byol": "32-4096+ BN ReLU 4096-256+",
    "simsiam": "32-2048 BN ReLU 2048-2048 BN ReLU 2048-2048 bn",
    "vicreg": "32-8192 BN ReLU 8192-8192 BN ReLU 8192-8192",
    "mocov2": "32-2048+ ReLU 2048-128+",
    "mocov3": "32-4096 BN ReLU 4096-256 bn",
    "swav": "32-2048+ BN ReLU 2048-128+",
    "fast_moco": "32-2048+ BN ReLU 2048-2048+ BN ReLU 2048-2048+ BN",
    "emp_ssl": "4096-4096+ BN ReLU 4096-1024+",
}
PREDICTORS = {
    "byol": "256-4096+ BN ReLU 4096-256+",
    "simsiam": "2048-512+ BN ReLU 512-2048+",
    "mocov3": "256-4096 BN ReLU 4096-256",
    "fast_moco": "2048-512+ BN ReLU 512-2048+",
}
TEACHERS = ("byol", "mocov2", "mocov3", "dino", "fast_moco")


@pytest.mark.parametrize("name", PROJECTORS)
def test_projectors_are_the_published_ones(name: str) -> None:
    assert layout(published(name).student.projector) == PROJECTORS[name]


@pytest.mark.parametrize("name", PREDICTORS)
def test_predictors_are_the_published_ones(name: str) -> None:
    assert layout(published(name).predictor) == PREDICTORS[name]


def test_byols_projector_may_end_in_a_batch_norm_its_teachers_too() -> None:
    m = published("byol", projector_norm=True)
    assert layout(m.student.projector) == layout(m.teacher.projector) == f"{PROJECTORS['byol']} bn"
    assert layout(m.predictor) == PREDICTORS["byol"]


def test_emp_ssl_evaluates_a_widened_feature() -> None:
    encoder = published("emp_ssl").encoder
    assert layout(encoder.pre) == "32-4096+ BN ReLU"
    assert encoder.num_features == 4096


def test_the_rest_of_swav_and_dino_is_the_published_one() -> None:
    prototypes = published("swav").prototypes
    assert (tuple(prototypes.weight.shape), prototypes.bias) == ((3000, 128), None)
    head = published("dino").student.projector
    assert layout(head.mlp) == "32-2048+ GELU 2048-2048+ GELU 2048-256+"
    assert (tuple(head.last.weight.shape), head.last.bias) == ((65536, 256), None)


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_begins_as_its_student_without_gradients_and_with_norms_of_its_own(name: str) -> None:
    m = method(name)
    own, teachers = m.student.state_dict(), m.teacher.state_dict()
    assert own.keys() == teachers.keys()
    assert all(own[key].equal(teachers[key]) and own[key].data_ptr() != teachers[key].data_ptr() for key in own)
    assert not any(p.requires_grad for p in m.teacher.parameters())
    norms = [child for child in m.modules() if isinstance(child, nn.modules.batchnorm._BatchNorm)]
    assert not norms
    assert any(isinstance(child, BatchNorm) for child in m.teacher.modules())


@pytest.mark.parametrize("name", ["simclr", "simsiam", "vicreg", "swav", "emp_ssl", "single_branch"])
def test_the_others_have_no_teacher(name: str) -> None:
    assert published(name).teacher is None


MOMENTA = {
    "byol": (0.996, 1.0),
    "mocov3": (0.99, 1.0),
    "dino": (0.996, 1.0),
    "mocov2": (0.999, 0.999),
    "fast_moco": (0.99, 0.99),
}


@pytest.mark.parametrize("name", MOMENTA)
def test_teachers_keep_or_raise_their_momentum_as_published(name: str) -> None:
    curve = published(name).curves["momentum"]
    assert (curve.start, curve.end) == MOMENTA[name]
    assert curve.for_next_step == (curve.start != curve.end)


@pytest.mark.parametrize("name", ["byol", "dino", "mocov3"])
def test_a_teachers_momentum_may_end_where_it_began_or_anywhere(name: str) -> None:
    for end in (0.9, 0.95):
        curve = published(name, momentum=0.9, momentum_end=end).curves["momentum"]
        assert (curve.start, curve.end) == (0.9, end)
    with pytest.raises(ConfigError, match=r"method.momentum_end=1.5 .*"):
        published(name, momentum_end=1.5)
