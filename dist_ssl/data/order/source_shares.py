"""The shares of the sources of a mixture in a run: what was planned, what has been used, and what they allow."""

from collections.abc import Iterator, Mapping

from dist_ssl.data.order.interleaving import Interleaving
from dist_ssl.data.storage.manifest import Split
from dist_ssl.data.storage.mixture import MixedSplit
from dist_ssl.errors import ConfigError, plural

METRIC = "source_samples"
"""Key of the number of samples of a source in metrics.jsonl, followed by the source's number, from 1."""


def check_batch(split: Split, batch_size: int) -> None:
    """Raise ConfigError where batches of a mixture have fewer samples than sources, or need more of one than it has.

    A batch in which a pass of a source ends and the next one begins may still hold a sample twice. From as many samples
    as sources on, shares are exact to one batch at every step, see interleaving.py.
    """
    if not isinstance(split, MixedSplit):
        return
    if batch_size < len(split.sources):
        raise ConfigError(
            f"batch_size={batch_size} is less than the {len(split.sources)} places of data.path.",
            "Use a larger batch_size, or fewer places.",
        )
    for source, share in zip(split.sources, asked(split, batch_size), strict=True):
        if share > source.samples:
            raise ConfigError(
                f"{source.folder} has {plural(source.samples, 'sample')}, and its share of a batch of {batch_size} is "
                f"{share:.4g}: some would be in every batch twice.",
                "Give it a lower weight in data.weights, or use a smaller batch_size.",
            )


def used(split: MixedSplit, samples: int) -> list[int]:
    """Return how many of the first `samples` samples of a run are of each source."""
    return Interleaving(split.weights).counts(samples)


def asked(split: MixedSplit, samples: int) -> list[float]:
    """Return the share of each source in this number of samples, by the weights; not rounded, [sources]."""
    return [samples * source.weight / sum(split.weights) for source in split.sources]


def metrics(split: Split, samples: int) -> Mapping[str, float]:
    """Return `used` by keys of metrics.jsonl; nothing for data that is no mixture."""
    if not isinstance(split, MixedSplit):
        return {}
    return {f"{METRIC}/{number}": float(count) for number, count in enumerate(used(split, samples), start=1)}


def described(split: Split) -> Iterator[str]:
    """Yield what an epoch of a mixture is, and a line for each source; nothing for data that is no mixture."""
    if not isinstance(split, MixedSplit):
        return
    total = len(split.samples)
    yield f"An epoch has {total} samples, as many as the {len(split.sources)} sources have together:"
    for number, (source, share) in enumerate(zip(split.sources, asked(split, total), strict=True), start=1):
        passes = f"{share / source.samples:.3g} passes over its {plural(source.samples, 'sample')}"
        yield f"  source {number}, {source.folder}: {100 * share / total:.4g} % of them, {passes}"
