"""The linear probe: top-1 accuracy of a linear classifier trained with labels on frozen features.

`linear_recipes.py` holds the protocols. The fast one keeps a linear layer with bias, SGD with momentum 0.9 on the
cross-entropy, batches of 256, 100 epochs, and a learning rate that falls to 0 by a cosine. Changed: features are
computed once, not of new augmentations in every epoch; they are standardised (each column minus its mean, divided by
its standard deviation, both of the training split), so that one list of learning rates fits every encoder; weights
start at zero and do not decay. The learning rate is chosen on a tenth of the training split, never on the queries. A
classifier of few samples takes few steps and has not converged then: below about 2,000 steps it loses some tenths of a
point against one that has, and smaller batches help.

Memory beside the caller's tensors, with R learning rates, width D and C classes: weights and momentum, 2 R (D + 1) C
float32 numbers; for one batch or 1,024 rows at a time, about 24 bytes for each feature and 16 for each of R C scores;
and some numbers per sample.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dist_ssl.core.draws import Draws, Ints, Purpose
from dist_ssl.errors import ConfigError, plural
from dist_ssl.evaluate.linear_recipes import FAST, LinearRecipe

MOMENTUM = 0.9
HELD_OUT = 10
"""One of so many training samples is held out of the sweep's training."""
ROWS = 1024
"""Rows that are evaluated at once."""
Say = Callable[[str], None]
"""Shows a line to the person who waits."""


def quiet(line: str) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class LinearResult:
    """Accuracies of a linear probe on the queries, 0 to 1.

    `last`: after the last epoch, the number to report; `best`: of the best epoch, which is chosen on the queries and
    therefore flatters; `sweep`: accuracy on the held-out part of the training split by learning rate, empty without a
    choice.
    """

    last: float
    best: float
    learning_rate: float
    sweep: dict[float, float]


class Standardiser:
    """Standardises features, [N, D] to [N, D] float32, by the mean and standard deviation of the ones given first.

    A column that is constant there, to the precision of float32, becomes 0 everywhere. All sums are in float64.
    """

    def __init__(self, features: Tensor) -> None:
        zeros = torch.zeros(features.shape[1], dtype=torch.float64, device=features.device)
        self.mean = sum((part.double().sum(0) for part in torch.split(features, ROWS)), zeros) / len(features)
        squares = ((part.double() - self.mean).square().sum(0) for part in torch.split(features, ROWS))
        std = (sum(squares, zeros) / len(features)).sqrt()
        constant = std <= torch.finfo(torch.float32).eps * self.mean.abs()
        self.scale = torch.where(constant, 0.0, 1 / std)

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the standardised rows."""
        return ((rows.double() - self.mean) * self.scale).float()


class Classifiers:
    """Linear classifiers of the same features, one for each of R learning rates, trained side by side by SGD.

    They start alike: weights of standard deviation `first_std`, drawn by the seed, and biases of zero. `weights`:
    [D, R * C] and `bias`: [R * C], so that a step of all is one matrix product.
    """

    def __init__(
        self,
        rates: Sequence[float],
        width: int,
        classes: int,
        device: torch.device,
        *,
        first_std: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.shape = (len(rates), classes)
        self.rates = torch.tensor(rates, device=device).repeat_interleave(classes)
        first = torch.randn(width, classes, generator=torch.Generator().manual_seed(seed)) * first_std
        self.weights = first.repeat(1, len(rates)).to(device)
        self.bias = torch.zeros_like(self.rates)
        self.momenta = torch.zeros_like(self.weights), torch.zeros_like(self.bias)

    def scores(self, x: Tensor) -> Tensor:
        """Return the logits of what the classifiers see of some rows, [B, D] to [B, R, C]."""
        return torch.addmm(self.bias, x, self.weights).view(-1, *self.shape)

    def step(self, x: Tensor, targets: Tensor, factor: float, decay: float = 0.0) -> None:
        """Update the weights by one batch, [B, D] and [B] of 0 to C - 1, at `factor` times each learning rate.

        `decay`: weight decay, of weights and biases as torch's SGD has it.
        """
        # d cross-entropy / d scores = (softmax - one-hot) / B
        gradient = (self.scores(x).softmax(2) - F.one_hot(targets, self.shape[1])[:, None]).flatten(1) / len(x)
        self.momenta[0].addmm_(x.T, gradient, beta=MOMENTUM)
        self.momenta[1].mul_(MOMENTUM).add_(gradient.sum(0))
        for momentum, value in zip(self.momenta, (self.weights, self.bias), strict=True):
            if decay:
                momentum.add_(value, alpha=decay)
            value.addcmul_(momentum, self.rates, value=-factor)


class TrainingSet(ABC):
    """Training samples as rows 0 to N - 1.

    `targets`: their classes as numbers 0 to C - 1, [N], on the device; `width`: D; `seen`: turns features, [B, D] of
    any scale, into what the classifier sees of them.
    """

    def __init__(self, targets: Tensor, classes: int, width: int, seen: Callable[[Tensor], Tensor]) -> None:
        self.targets, self.classes, self.width, self.seen = targets, classes, width, seen

    @abstractmethod
    def batches(self, order: Ints, batch: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield features of the rows of an epoch in this order, [B, D], and their targets, `batch` at a time."""

    @abstractmethod
    def scored(self, classifiers: Classifiers, rows: Ints) -> list[float]:
        """Return the accuracy of each classifier on some rows, 0 to 1."""

    def train(self, rows: Ints, rates: Sequence[float], recipe: LinearRecipe, seed: int) -> Iterator[Classifiers]:
        """Train on these rows with each learning rate; yield the classifiers, always the same object, after each epoch.

        The order of the samples is drawn by seed, epoch and row.
        """
        device, std = self.targets.device, recipe.first_std
        found = Classifiers(rates, self.width, self.classes, device, first_std=std, seed=seed)
        steps = -(-len(rows) // recipe.batch)
        for epoch in range(recipe.epochs):
            order = rows[Draws(seed, epoch + 1).order(Purpose.PROBE, rows)]  # epoch 0 is that of `split`
            for step, (features, targets) in enumerate(self.batches(order, recipe.batch, epoch)):
                found.step(self.seen(features), targets, recipe.factor(epoch, step, steps), recipe.decay)
            yield found

    def split(self, seed: int) -> tuple[Ints, Ints]:
        """Return the rows to train on and the tenth to hold out, drawn by the seed: of each class its share.

        The only sample of a class is never held out, nor are all of a class; there is at least one row to hold out.
        """
        targets = self.targets.cpu().numpy()
        drawn = Draws(seed).order(Purpose.PROBE, np.arange(len(targets), dtype=np.int64))
        by_class = drawn[np.argsort(targets[drawn], kind="stable")]
        several = by_class[np.bincount(targets)[targets[by_class]] > 1]
        held = np.sort(several[min(HELD_OUT, len(several)) - 1 :: HELD_OUT])
        return np.setdiff1d(drawn, held), held

    def accuracies(self, classifiers: Classifiers, features: Tensor, targets: Tensor, rows: Ints) -> list[float]:
        """Return the accuracy of each classifier on some rows of features, [M, D] of any scale, and targets, [M]."""
        right = torch.zeros(classifiers.shape[0], dtype=torch.int64, device=features.device)
        for at in torch.split(torch.from_numpy(rows).to(features.device), ROWS):
            predicted = classifiers.scores(self.seen(features.index_select(0, at))).argmax(2)
            right += (predicted == targets[at, None]).sum(0)
        return [int(count) / len(rows) for count in right]


class CachedSet(TrainingSet):
    """A training set of features that are computed once, [N, D]; an epoch's batches are as equal as they can be."""

    def __init__(self, features: Tensor, targets: Tensor, classes: int, seen: Callable[[Tensor], Tensor]) -> None:
        super().__init__(targets, classes, features.shape[1], seen)
        self.features = features

    def batches(self, order: Ints, batch: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """See `TrainingSet`."""
        for at in torch.from_numpy(order).to(self.features.device).tensor_split(-(-len(order) // batch)):
            yield self.features.index_select(0, at), self.targets[at]

    def scored(self, classifiers: Classifiers, rows: Ints) -> list[float]:
        """See `TrainingSet`."""
        return self.accuracies(classifiers, self.features, self.targets, rows)


def linear_probe(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    recipe: LinearRecipe = FAST,
    seed: int = 0,
) -> LinearResult:
    """Train a linear classifier on the bank and return its accuracy on the queries; on a CPU always the same bits.

    `bank`: [N, D], `queries`: [Q, D], of any floating type; labels: int64, any numbers; a query of a class that the
    bank lacks counts as wrong. Raises `ConfigError` where the bank has one class only, or too few samples for the
    classes.
    """
    check_classes(bank_labels, query_labels)
    classes, targets = torch.unique(bank_labels, return_inverse=True)
    training = CachedSet(bank, targets, len(classes), Standardiser(bank) if recipe.standardise else Tensor.float)
    return fitted(training, queries, numbered(query_labels, classes), recipe, seed=seed)


def numbered(labels: Tensor, classes: Tensor) -> Tensor:
    """Return the place of each label among the ascending classes, -1 where it is none of them."""
    return torch.where(torch.isin(labels, classes), torch.searchsorted(classes, labels.contiguous()), -1)


def fitted(
    training: TrainingSet,
    queries: Tensor,
    targets: Tensor,
    recipe: LinearRecipe,
    *,
    seed: int = 0,
    say: Say = quiet,
) -> LinearResult:
    """Train a linear classifier on a training set and return its accuracy on the queries, [Q, D], of `targets`, [Q].

    Where the recipe has several learning rates, all are trained at once on nine tenths of the training set; one of them
    is chosen by the accuracy on the other tenth after the last epoch (`choose_rate`) and trained on all of it.
    """
    rate, sweep = recipe.rates[0], {}
    if len(recipe.rates) > 1:
        rest, held = training.split(seed)
        say(f"Choosing one of {len(recipe.rates)} learning rates by a tenth of the training split.")
        *_, swept = training.train(rest, recipe.rates, recipe, seed)
        sweep = dict(zip(recipe.rates, training.scored(swept, held), strict=True))
        rate = choose_rate(sweep, len(held))
    rows, asked = (np.arange(len(given), dtype=np.int64) for given in (training.targets, queries))
    by_epoch: list[float] = []
    for found in training.train(rows, (rate,), recipe, seed):
        by_epoch += training.accuracies(found, queries, targets, asked)
        say(f"Epoch {len(by_epoch)} of {recipe.epochs}: {100 * by_epoch[-1]:.2f} %.")
    return LinearResult(by_epoch[-1], max(by_epoch), rate, sweep)


def choose_rate(sweep: Mapping[float, float], count: int) -> float:
    """Return the middle one of the learning rates whose accuracy on `count` samples is the best or as good as that.

    As good: at most one standard error of the best accuracy below it. The best one itself is often the best by chance,
    and a rate at the edge of the good ones trains too little or too much.
    """
    best = max(sweep.values())
    good = sorted(rate for rate in sweep if sweep[rate] >= best - math.sqrt(best * (1 - best) / count))
    return good[len(good) // 2]


def check_classes(bank_labels: Tensor, query_labels: Tensor) -> None:
    """Raise ConfigError where no classifier can be trained, or none chosen."""
    several, count = (len(torch.unique(labels)) for labels in (bank_labels, torch.cat([bank_labels, query_labels])))
    if several < 2 or len(bank_labels) < count or len(bank_labels) == several:
        raise ConfigError(
            f"A linear probe needs at least 2 classes and more samples than classes; its training split has "
            f"{plural(len(bank_labels), 'sample')} of {plural(several, 'class', 'classes')}, and with its "
            f"queries the number of classes is {count}.",
            "Give it more training samples, or a split whose labels differ.",
        )


def logistic_regression(features: Tensor, labels: Tensor, l2: float) -> tuple[Tensor, Tensor]:
    """Return the weights [C, D] and biases [C], in float64, of a linear classifier fitted until it converges.

    It minimises mean cross-entropy + l2 * (sum of the squared weights), the biases left out, by L-BFGS over all
    `features`, [N, D], at once; `labels`: [N] int64, 0 to C - 1.
    """
    x = features.double()
    weight = x.new_zeros(int(labels.max()) + 1, x.shape[1], requires_grad=True)
    bias = x.new_zeros(len(weight), requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=1000, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        loss = F.cross_entropy(F.linear(x, weight, bias), labels) + l2 * weight.square().sum()
        weight.grad, bias.grad = torch.autograd.grad(loss, [weight, bias])
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
