"""The kNN probe: votes as by hand, the same samples every time, features and labels side by side."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dist_ssl.config.durations import Duration
from dist_ssl.core.progress import Progress
from dist_ssl.data.epoch_views import Colours
from dist_ssl.data.loader.load import Loader
from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.read import Reader
from dist_ssl.distributed.world import World
from dist_ssl.evaluate import features as features_module
from dist_ssl.evaluate import knn as knn_module
from dist_ssl.evaluate.features import Extractor, subset
from dist_ssl.evaluate.inputs import CentreView
from dist_ssl.evaluate.knn import KNN, NoProbe, class_votes, knn_votes, nearest
from tests.readers import Damaged

COLOURS = Colours((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class Pixels:
    """An engine whose features are the pixels themselves; it notes branch and number of images of every call."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, str]] = []

    def embed(self, view: Tensor, branch: str) -> Tensor:
        """[B, 3, S, S] -> [B, 3 * S * S]."""
        self.asked.append((len(view), branch))
        return view.flatten(1).float()


@pytest.fixture(scope="module")
def data(demo_shards: Path) -> manifest.Manifest:
    """The demo."""
    return manifest.read(demo_shards)


def extractor(reader: Reader, batch: int = 256, world: World | None = None) -> Extractor:
    """Features of the centres of images, 12 px."""
    inputs = CentreView(COLOURS, torch.float32, resize=14, crop=12)
    return Extractor(Loader(reader, 2), inputs, world=world or World(), batch=batch)


class Sizes(TorchDispatchMode):
    """Notes the size of the largest product of matrices, and of the largest tensor that `topk` is asked about."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mm.default:
            self.largest = max(self.largest, found.numel())
        if func is torch.ops.aten.topk.default:
            self.largest = max(self.largest, args[0].numel())
        return found


def slow_votes(bank: Tensor, labels: Tensor, queries: Tensor, k: int, temperature: float) -> list[list[float]]:
    """Per query and class the weight of its votes, query by query and neighbour by neighbour."""
    votes = []
    for query in queries:
        near = [float(F.cosine_similarity(query, row, dim=0)) for row in bank]
        best = sorted(range(len(bank)), key=lambda n: -near[n])[:k]
        votes.append(
            [math.fsum(math.exp((near[n] - 1) / temperature) for n in best if labels[n] == c) for c in range(4)]
        )
    return votes


@given(st.integers(1, 30), st.integers(1, 40), st.sampled_from([0.07, 0.2, 1.0]), st.integers(0, 2**30))
def test_votes_equal_the_slow_reference(size: int, k: int, temperature: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    bank, queries = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (size, 5))
    labels = torch.randint(0, 4, (size,), generator=generator)
    own = knn_votes(bank, labels, queries, k, temperature).tolist()
    for chosen, votes in zip(own, slow_votes(bank, labels, queries, k, temperature), strict=True):
        assert votes[chosen] == pytest.approx(max(votes))


@pytest.mark.parametrize(("queries", "rows"), [(1, 1), (7, 3), (4, 40), (1000, 1000)])
@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (200, 0.1)])
def test_votes_of_any_parts_are_those_of_scikit_learn(
    queries: int, rows: int, k: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knn_module, "QUERIES", queries)
    monkeypatch.setattr(knn_module, "ROWS", rows)
    generator = torch.Generator().manual_seed(k)
    bank, asked = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (90, 23))
    labels = torch.cat([torch.arange(5), torch.randint(0, 5, (85,), generator=generator)])
    own = class_votes(bank, labels, asked, k, temperature)
    peer = KNeighborsClassifier(
        min(k, len(bank)), metric="cosine", weights=lambda distance: np.exp((1 - distance) / temperature)
    ).fit(bank, labels)
    np.testing.assert_allclose(own.numpy(), peer.predict_proba(asked), atol=1e-6, rtol=0)
    assert knn_votes(bank, labels, asked, k, temperature).tolist() == peer.predict(asked).tolist()


def test_neither_bank_nor_similarities_are_compared_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn_module, "QUERIES", 5)
    monkeypatch.setattr(knn_module, "ROWS", 8)
    bank, queries = torch.randn(50, 4), torch.randn(12, 4)
    with Sizes() as sizes:
        near, rows = nearest(bank, queries, 3, torch.device("cpu"))
    assert sizes.largest <= 5 * (8 + 3)
    best, at = (F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T).topk(3, dim=1)
    torch.testing.assert_close(near, best)
    assert torch.equal(rows, at)


def test_a_huge_class_number_takes_no_memory() -> None:
    bank, labels = torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([1 << 50, 3])
    assert knn_votes(bank, labels, torch.tensor([[1.0, 0.1], [0.1, 1]]), 1, 0.07).tolist() == [1 << 50, 3]


def test_lengths_do_not_matter() -> None:
    bank, labels = torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([0, 1])
    queries = torch.tensor([[100.0, 1], [0.001, 0.01]])
    assert knn_votes(bank * torch.tensor([[0.01], [50]]), labels, queries, 1, 0.07).tolist() == [0, 1]


def test_two_far_neighbours_do_not_outvote_a_near_one_at_a_low_temperature() -> None:
    bank, labels = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]]), torch.tensor([0, 1, 1])
    query = torch.tensor([[1.0, 0.0]])
    assert knn_votes(bank, labels, query, 3, 0.07).tolist() == [0]
    assert knn_votes(bank, labels, query, 3, 10.0).tolist() == [1]


def test_a_very_low_temperature_does_not_overflow() -> None:
    bank, labels = torch.tensor([[0.99, 0.141], [1.0, 0.0]]), torch.tensor([0, 1])
    assert knn_votes(bank, labels, torch.tensor([[1.0, 0.0]]), 2, 0.01).tolist() == [1]


@pytest.mark.parametrize(("size", "count"), [(100, 10), (100, 100), (100, 500), (5, 0)])
def test_a_subset_is_sorted_unique_and_no_larger_than_the_whole(size: int, count: int) -> None:
    chosen = subset(size, count, 0)
    assert len(chosen) == min(size, count)
    assert sorted(set(chosen.tolist())) == chosen.tolist()
    assert all(0 <= n < size for n in chosen.tolist())


def test_a_subset_is_the_same_every_time_and_grows_by_adding() -> None:
    assert subset(1000, 8, 0).tolist() == [324, 465, 494, 628, 647, 767, 787, 797]
    np.testing.assert_array_equal(subset(1000, 100, 3), subset(1000, 100, 3))
    assert set(subset(1000, 50, 3).tolist()) < set(subset(1000, 100, 3).tolist())
    assert set(subset(1000, 100, 3).tolist()) != set(subset(1000, 100, 4).tolist())


@pytest.mark.parametrize("batch", [7, 256])
def test_features_and_labels_stand_side_by_side_in_the_order_asked_for(data: manifest.Manifest, batch: int) -> None:
    numbers, engine = np.array([3, 9, 10, 22, 31, 40, 41, 59]), Pixels()
    split = data.split("train")
    with Reader(split) as reader:
        features, labels = extractor(reader, batch).features(engine, numbers)
        single = torch.cat([extractor(reader).features(engine, numbers[n : n + 1])[0] for n in range(len(numbers))])
    assert labels.tolist() == split.samples.labels[numbers].tolist()
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, single)
    assert [size for size, _ in engine.asked[: -len(numbers)]] == ([8] if batch == 256 else [7, 1])
    assert {branch for _, branch in engine.asked} == {"student"}


@pytest.mark.parametrize(("room", "decoded"), [(1 << 20, 8 + 3), (100, 8 + 8 + 3 + 8)])
def test_images_are_decoded_again_only_where_they_are_others_or_too_many(
    data: manifest.Manifest, monkeypatch: pytest.MonkeyPatch, room: int, decoded: int
) -> None:
    monkeypatch.setattr(features_module, "KEPT_BYTES", room)
    numbers, count = np.arange(8), 0
    with Reader(data.split("val")) as reader:
        own, read = extractor(reader, 3), reader.read

        def counted(number: int) -> bytes:
            nonlocal count
            count += 1
            return read(number)

        monkeypatch.setattr(reader, "read", counted)
        first = own.features(Pixels(), numbers)
        again = own.features(Pixels(), numbers)
        others = own.features(Pixels(), numbers[:3])
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        torch.testing.assert_close(others[0], first[0][:3])
        if room == 100:
            own.features(Pixels(), numbers)
    assert count == decoded


def test_the_teacher_is_asked_where_it_is_wanted(data: manifest.Manifest) -> None:
    engine = Pixels()
    with Reader(data.split("val")) as reader:
        extractor(reader).features(engine, np.array([0, 1]), branch="teacher")
    assert engine.asked == [(2, "teacher")]


@pytest.mark.parametrize("batch", [1, 3, 256])
def test_features_of_unreadable_images_are_left_out(
    data: manifest.Manifest, batch: int, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = np.arange(8)
    with Reader(data.split("val")) as reader:
        whole, _ = extractor(reader).features(Pixels(), numbers)
    with Damaged(data.split("val"), {2, 7}) as reader:
        features, labels = extractor(reader, batch).features(Pixels(), numbers)
    keys = [data.split("val").samples.key(number) for number in (2, 7)]
    assert caplog.messages == [f"The evaluation leaves sample {key} of 'val' out: not an image." for key in keys]
    kept = [0, 1, 3, 4, 5, 6]
    assert labels.tolist() == kept
    torch.testing.assert_close(features, whole[kept])


def probe(bank: Reader, queries: Reader, every: str = "1 epoch", k: int = 5) -> KNN:
    """The whole demo asks and answers."""
    return KNN((extractor(bank), np.arange(60)), (extractor(queries), np.arange(20)), every=Duration.parse(every), k=k)


def test_the_probe_finds_every_image_in_a_bank_that_holds_it(data: manifest.Manifest) -> None:
    with Reader(data.split("train")) as reader:
        bank = (extractor(reader), np.arange(60))
        found = KNN(bank, bank, every=Duration.parse("1 epoch"), k=1).epoch(Pixels(), Progress(epochs=9, epoch=1))
    assert found["knn_accuracy"] == 1.0
    assert found["probe_seconds"] >= 0


def test_the_probe_counts_right_answers(data: manifest.Manifest) -> None:
    with Reader(data.split("train")) as bank, Reader(data.split("val")) as queries:
        found = probe(bank, queries).epoch(Pixels(), Progress(epochs=9, epoch=1))
        known, known_labels = extractor(bank).features(Pixels(), np.arange(60))
        asked, asked_labels = extractor(queries).features(Pixels(), np.arange(20))
    right = knn_votes(known, known_labels, asked, 5, 0.07) == asked_labels
    assert found["knn_accuracy"] == pytest.approx(int(right.sum()) / 20)


def test_the_probe_looks_when_it_is_due_only(data: manifest.Manifest) -> None:
    engine = Pixels()
    with Reader(data.split("train")) as bank, Reader(data.split("val")) as queries:
        looks = probe(bank, queries, every="2 epochs")
        assert looks.epoch(engine, Progress(epochs=9, epoch=1)) == {}
        assert not engine.asked
        assert "knn_accuracy" in looks.epoch(engine, Progress(epochs=9, epoch=2))


def test_no_probe_measures_nothing() -> None:
    assert NoProbe().epoch(Pixels(), Progress(epochs=9, epoch=1)) == {}
