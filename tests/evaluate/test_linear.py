"""The linear probe: agrees with scikit-learn, chooses its learning rate on training samples, same bits every time."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dist_ssl.core.draws import Draws, Ints, Purpose
from dist_ssl.errors import ConfigError
from dist_ssl.evaluate.linear import ROWS, CachedSet, Standardiser, choose_rate, linear_probe, logistic_regression
from dist_ssl.evaluate.linear_recipes import FAST, LINEAR, RATES, LinearRecipe

QUICK = replace(FAST, epochs=5, batch=64)


@dataclass(frozen=True)
class Problem:
    """Gaussian classes around random centres: what a linear classifier is right for."""

    bank: Tensor
    bank_labels: Tensor
    queries: Tensor
    query_labels: Tensor

    @property
    def all(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.bank, self.bank_labels, self.queries, self.query_labels

    def scaled(self, seed: int) -> "Problem":
        """Return the same problem with columns between 1e-6 and 1e6 wide, up to 30 widths away from 0."""
        generator = np.random.default_rng(seed)
        width = 10 ** generator.uniform(-6, 6, self.bank.shape[1])
        offset = 30 * width * generator.uniform(-1, 1, len(width))
        bank, queries = (
            torch.from_numpy(x.double().numpy() * width + offset).float() for x in (self.bank, self.queries)
        )
        return Problem(bank, self.bank_labels, queries, self.query_labels)


def problem(
    seed: int,
    *,
    size: int = 600,
    asked: int = 300,
    width: int = 12,
    classes: int = 5,
    distance: float = 2.5,
    shares: list[float] | None = None,
) -> Problem:
    """Draw a problem: `distance` of the centres from 0, in standard deviations; `shares` of the classes, else equal."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(classes, width)) * distance / width**0.5
    mixed = np.eye(width) + 0.2 * generator.normal(size=(width, width))
    labels = [generator.choice(classes, n, p=shares) for n in (size, asked)]
    drawn = [(centres[y] + generator.normal(size=(len(y), width))) @ mixed for y in labels]
    known, questions = (torch.from_numpy(x).float() for x in drawn)
    return Problem(known, torch.from_numpy(labels[0]), questions, torch.from_numpy(labels[1]))


def training_set(bank: Tensor, labels: Tensor) -> CachedSet:
    return CachedSet(bank, labels, int(labels.max()) + 1, Standardiser(bank))


def accuracy_of_scikit_learn(given: Problem) -> float:
    scaler = StandardScaler().fit(given.bank.double().numpy())
    known, asked = (scaler.transform(x.double().numpy()) for x in (given.bank, given.queries))
    fitted = LogisticRegression(max_iter=2000).fit(known, given.bank_labels.numpy())
    return float(fitted.score(asked, given.query_labels.numpy()))


def slow_training(
    x: Tensor,
    y: Tensor,
    rows: Ints,
    recipe: LinearRecipe,
    seed: int,
    after: Callable[[nn.Linear], None] = lambda _: None,
) -> nn.Linear:
    """Train torch's own layer by torch's own SGD and schedule, in float64; call `after` at the end of each epoch."""
    layer = nn.Linear(x.shape[1], int(y.max()) + 1, dtype=torch.float64)
    first = torch.randn(x.shape[1], layer.out_features, generator=torch.Generator().manual_seed(seed))
    layer.weight.data.copy_(recipe.first_std * first.T)
    nn.init.zeros_(layer.bias)
    steps, schedulers = -(-len(rows) // recipe.batch), torch.optim.lr_scheduler
    optimizer = torch.optim.SGD(layer.parameters(), lr=recipe.rates[0], momentum=0.9, weight_decay=recipe.decay)
    if recipe.drops:
        schedule: Any = schedulers.MultiStepLR(optimizer, list(recipe.drops), 0.1)
    else:
        schedule = schedulers.CosineAnnealingLR(optimizer, recipe.epochs * (1 if recipe.by_epoch else steps))
    for epoch in range(recipe.epochs):
        order = rows[Draws(seed, epoch + 1).order(Purpose.PROBE, rows)]
        for at in np.array_split(order, steps):
            optimizer.zero_grad()
            F.cross_entropy(layer(x[at]), y[at]).backward()
            optimizer.step()
            if not recipe.by_epoch:
                schedule.step()
        if recipe.by_epoch:
            schedule.step()
        after(layer)
    return layer


def accuracy(layer: nn.Linear, x: Tensor, y: Tensor) -> float:
    return int((layer(x).argmax(1) == y).sum()) / len(y)


def standardised(bank: Tensor, rows: Tensor) -> Tensor:
    return (rows.double() - bank.double().mean(0)) / bank.double().std(0, correction=0)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("distance", [2.5, 6.0])
def test_it_agrees_with_scikit_learn_to_a_fifth_of_a_point(seed: int, distance: float) -> None:
    given = problem(seed, size=4000, asked=10_000, distance=distance)
    given = given.scaled(seed) if seed % 2 else given
    found = linear_probe(*given.all, recipe=replace(FAST, epochs=40, batch=128))
    assert found.last == pytest.approx(accuracy_of_scikit_learn(given), abs=0.002)


def test_it_agrees_with_scikit_learn_where_classes_are_unbalanced() -> None:
    given = problem(5, size=4000, asked=10_000, classes=3, shares=[0.9, 0.08, 0.02], distance=4)
    found = linear_probe(*given.all, recipe=replace(FAST, epochs=40, batch=128))
    assert found.last == pytest.approx(accuracy_of_scikit_learn(given), abs=0.002)
    assert found.last > 0.93


@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0])
def test_the_converged_form_has_the_weights_of_scikit_learn(strength: float) -> None:
    given = problem(0, size=500)
    weight, bias = logistic_regression(given.bank, given.bank_labels, 1 / (2 * strength * len(given.bank)))
    fitted = LogisticRegression(C=strength, tol=1e-10, max_iter=5000)
    fitted.fit(given.bank.double().numpy(), given.bank_labels.numpy())
    np.testing.assert_allclose(weight.numpy(), fitted.coef_, atol=1e-5)
    np.testing.assert_allclose((bias - bias.mean()).numpy(), fitted.intercept_ - fitted.intercept_.mean(), atol=1e-5)


def test_long_training_ends_at_the_converged_form() -> None:
    given = problem(1, size=800, classes=3, distance=1.5, width=6)
    training = training_set(given.bank, given.bank_labels)
    *_, trained = training.train(np.arange(800), [0.3], replace(FAST, batch=200), 0)
    weight, bias = logistic_regression(training.seen(given.bank), given.bank_labels, 0.0)
    torch.testing.assert_close(trained.weights.T.double(), weight - weight.mean(0), atol=1e-3, rtol=0)
    torch.testing.assert_close(trained.bias.double(), bias - bias.mean(), atol=1e-3, rtol=0)


def test_every_rate_of_the_sweep_is_trained_as_if_alone() -> None:
    given = problem(2)
    training, rows = training_set(given.bank, given.bank_labels), np.arange(3, 500)
    *_, together = training.train(rows, RATES, QUICK, 4)
    x = standardised(given.bank, given.bank)
    for n, rate in enumerate(RATES):
        own = together.weights.unflatten(1, together.shape)[:, n], together.bias.unflatten(0, together.shape)[n]
        *_, alone = training.train(rows, [rate], QUICK, 4)
        layer = slow_training(x, given.bank_labels, rows, replace(QUICK, rates=(rate,)), 4)
        for mine, single, slow in zip(own, (alone.weights, alone.bias), (layer.weight.T, layer.bias), strict=True):
            torch.testing.assert_close(mine, single, atol=1e-5, rtol=0)
            torch.testing.assert_close(mine.double(), slow.detach(), atol=1e-5, rtol=0)


def test_the_result_is_that_of_the_slow_reference() -> None:
    # few samples, many columns: the classifier fits noise, so that its best epoch is not its last
    given = problem(3, size=120, width=40, distance=1.5, classes=3)
    own = replace(FAST, epochs=20, batch=16)
    found = linear_probe(*given.all, recipe=own, seed=1)
    x, asked = (standardised(given.bank, rows) for rows in (given.bank, given.queries))
    rest, held = training_set(given.bank, given.bank_labels).split(1)
    sweep, by_epoch = {}, []
    for rate in RATES:
        layer = slow_training(x, given.bank_labels, rest, replace(own, rates=(rate,)), 1)
        sweep[rate] = accuracy(layer, x[held], given.bank_labels[held])
    assert found.sweep == sweep
    assert found.learning_rate == choose_rate(sweep, len(held))
    slow_training(
        x,
        given.bank_labels,
        np.arange(120),
        replace(own, rates=(found.learning_rate,)),
        1,
        after=lambda layer: by_epoch.append(accuracy(layer, asked, given.query_labels)),
    )
    assert (found.last, found.best) == (by_epoch[-1], max(by_epoch))
    assert found.best > found.last


@pytest.mark.parametrize("name", sorted(set(LINEAR) - {"fast"}))
def test_published_protocols_train_as_torch_does(name: str) -> None:
    """Fewer epochs, and a decay that shows: features as they are, the authors' rate, schedule and first weights."""
    own = LINEAR[name]
    drops = tuple(drop // 10 for drop in own.drops)
    assert len(own.rates) == 1
    rates = (own.rates[0] / 10,)  # at 30 the biases of five classes diverge, and rounding grows
    own = replace(own, epochs=own.epochs // 10, drops=drops, batch=own.batch // 8, decay=1000 * own.decay, rates=rates)
    given = problem(6, size=300, distance=1.5)
    bank = given.bank / 16
    training, rows = CachedSet(bank, given.bank_labels, 5, Tensor.float), np.arange(300)
    *_, trained = training.train(rows, own.rates, own, 3)
    layer = slow_training(bank.double(), given.bank_labels, rows, own, 3)
    torch.testing.assert_close(trained.weights.double(), layer.weight.T.detach(), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(trained.bias.double(), layer.bias.detach(), atol=2e-5, rtol=1e-4)
    found = linear_probe(bank, given.bank_labels, given.queries / 16, given.query_labels, recipe=own, seed=3)
    assert found.sweep == {}
    assert found.learning_rate == own.rates[0]
    assert found.last == accuracy(layer, given.queries.double() / 16, given.query_labels)


def test_a_published_rate_may_be_swept() -> None:
    own = replace(LINEAR["swav"].swept, epochs=10)
    assert LINEAR["swav"].rates[0] in own.rates
    given = problem(7)
    found = linear_probe(*given.all, recipe=own)
    assert tuple(found.sweep) == own.rates
    assert found.learning_rate == choose_rate(found.sweep, 60)


@pytest.mark.parametrize(
    ("sweep", "count", "chosen"),
    [
        ({0.1: 1.0, 0.01: 1.0, 0.03: 1.0}, 100, 0.03),
        ({0.1: 0.9, 0.3: 0.99, 1.0: 1.0}, 100, 1.0),  # the error of 1.0 is 0
        ({0.01: 0.5, 0.1: 0.78, 1.0: 0.8, 10.0: 0.77}, 100, 1.0),  # the error is 0.04, so three are good
        ({0.01: 0.5, 0.1: 0.78, 1.0: 0.8, 10.0: 0.77}, 10_000, 1.0),  # the error is 0.004
        ({0.01: 0.8, 0.1: 0.79, 1.0: 0.77, 10.0: 0.6}, 100, 0.1),
        ({0.01: 0.8, 0.1: 0.79, 1.0: 0.77, 10.0: 0.6}, 10_000, 0.01),
        ({0.01: 0.79, 0.1: 0.8}, 100, 0.1),
        ({0.01: 0.0, 0.1: 0.0, 1.0: 0.0}, 1, 0.1),
    ],
)
def test_the_middle_one_of_the_good_rates_is_chosen(sweep: dict[float, float], count: int, chosen: float) -> None:
    assert choose_rate(sweep, count) == chosen


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**30))
def test_queries_change_the_reported_accuracies_alone(seed: int) -> None:
    given = problem(seed % 3, distance=1.5)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(300))
    found = linear_probe(*given.all, recipe=QUICK)
    others = linear_probe(given.bank, given.bank_labels, given.queries, given.query_labels[order], recipe=QUICK)
    assert (others.learning_rate, others.sweep) == (found.learning_rate, found.sweep)
    assert others.last < found.last - 0.1
    moved = linear_probe(given.bank, given.bank_labels, given.queries[order] * 7, given.query_labels, recipe=QUICK)
    assert (moved.learning_rate, moved.sweep) == (found.learning_rate, found.sweep)


def test_it_is_a_function_of_its_inputs_and_its_seed() -> None:
    given = problem(4, distance=1.5)
    first = linear_probe(*given.all, recipe=QUICK, seed=7)
    torch.manual_seed(99)
    assert linear_probe(*given.all, recipe=QUICK, seed=7) == first
    assert linear_probe(*given.all, recipe=QUICK, seed=8).sweep != first.sweep


@pytest.mark.parametrize("factor", [2.0**-40, 2.0**30])
def test_the_scale_of_the_features_does_not_matter(factor: float) -> None:
    given = problem(5)
    scaled = linear_probe(
        given.bank * factor, given.bank_labels, given.queries * factor, given.query_labels, recipe=QUICK
    )
    assert scaled == linear_probe(*given.all, recipe=QUICK)


def test_constant_columns_are_left_out() -> None:
    given = problem(6)
    rounded = torch.full((600, 1), 0.1)
    rounded[::2] = torch.nextafter(rounded[::2], torch.tensor(1.0))  # constant but for the last bit
    x = torch.cat([given.bank, rounded, torch.zeros(600, 1)], dim=1)
    standardise = Standardiser(x)
    assert not standardise(x)[:, -2:].any()
    assert not standardise(x + 5)[:, -2:].any()
    torch.testing.assert_close(standardise(x)[:, :-2].double(), standardised(given.bank, given.bank), atol=1e-6, rtol=0)
    asked = torch.cat([given.queries, torch.randn(300, 2)], dim=1)
    found = linear_probe(x, given.bank_labels, asked, given.query_labels, recipe=QUICK)
    assert found.last == pytest.approx(linear_probe(*given.all, recipe=QUICK).last, abs=0.005)


def test_labels_may_be_any_numbers() -> None:
    given, names = problem(7), torch.tensor([-3, 7, 8, 1000, 2**40])
    named = linear_probe(given.bank, names[given.bank_labels], given.queries, names[given.query_labels], recipe=QUICK)
    assert named == linear_probe(*given.all, recipe=QUICK)


def test_a_query_of_an_unknown_class_counts_as_wrong() -> None:
    given, names = problem(7, distance=30), torch.tensor([0, 10, 20, 30, 40])
    labels = names[given.query_labels]
    assert linear_probe(given.bank, names[given.bank_labels], given.queries, labels, recipe=QUICK).last == 1.0
    labels[:30] = torch.tensor([-5, 15, 50]).repeat(10)
    assert linear_probe(given.bank, names[given.bank_labels], given.queries, labels, recipe=QUICK).last == 0.9


def test_a_class_may_be_missing_from_the_held_out_part() -> None:
    labels = torch.arange(40).repeat_interleave(5)
    bank = 10 * torch.eye(40)[labels] + torch.randn(200, 40, generator=torch.Generator().manual_seed(0))
    _, held = training_set(bank, labels).split(0)
    assert len(held) == 20
    assert len(labels[held].unique()) == 20
    found = linear_probe(bank, labels, bank, labels, recipe=replace(FAST, epochs=20, batch=32))
    assert found.last == 1.0
    assert found.sweep[found.learning_rate] == 1.0


@given(st.lists(st.integers(1, 45), min_size=2, max_size=8).filter(lambda sizes: max(sizes) > 1), st.integers(0, 2**63))
def test_a_tenth_of_each_class_is_held_out(sizes: list[int], seed: int) -> None:
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    labels = labels[torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))]
    training = training_set(torch.zeros(len(labels), 1), labels)
    rest, held = training.split(seed)
    assert sorted([*rest, *held]) == list(range(len(labels)))
    several = sum(size for size in sizes if size > 1)
    assert len(held) == max(1, several // 10)
    counts = labels[held].bincount(minlength=len(sizes)).tolist()
    assert all(
        count in (size // 10, -(-size // 10)) and count < size for count, size in zip(counts, sizes, strict=True)
    )
    again = training.split(seed)
    np.testing.assert_array_equal(again[1], held)


def test_the_held_out_part_depends_on_the_seed() -> None:
    training = training_set(torch.zeros(100, 1), torch.arange(100) % 4)
    assert training.split(0)[1].tolist() == [3, 15, 26, 37, 57, 64, 66, 76, 89, 91]
    assert set(training.split(1)[1].tolist()) != {3, 15, 26, 37, 57, 64, 66, 76, 89, 91}


@pytest.mark.parametrize(
    ("bank_labels", "query_labels", "named"),
    [
        ([3, 3, 3, 3], [3, 3], "4 samples of 1 class,"),
        ([3, 3, 3, 3], [3, 5], "4 samples of 1 class,"),
        ([0, 0, 1], [0, 1, 2, 3], "3 samples of 2 classes, and with its queries the number of classes is 4"),
        ([0, 1, 2], [0, 1, 2], "3 samples of 3 classes"),
        ([], [0], "0 samples of 0 classes"),
    ],
)
def test_too_few_classes_or_samples_are_refused(bank_labels: list[int], query_labels: list[int], named: str) -> None:
    known, asked = (torch.tensor(labels, dtype=torch.int64) for labels in (bank_labels, query_labels))
    with pytest.raises(ConfigError, match=named):
        linear_probe(torch.randn(len(known), 2), known, torch.randn(len(asked), 2), asked)


class Sizes(TorchDispatchMode):
    """Notes the largest tensor, in numbers, that is made and is not a view of the `given` ones."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.given, self.largest = {x.untyped_storage().data_ptr() for x in given}, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for x in made if isinstance(made, list | tuple) else [made]:
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in self.given:
                self.largest = max(self.largest, x.numel())
        return made


def test_no_copy_of_the_features_is_made() -> None:
    given = problem(8, size=9000, asked=6000, width=40)
    with Sizes(*given.all) as sizes:
        linear_probe(*given.all, recipe=replace(FAST, epochs=1))
    per_row = max(40, len(RATES) * 5)
    assert 256 * per_row <= sizes.largest <= max(ROWS * per_row, 9000 + 6000)
