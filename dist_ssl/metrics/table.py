"""The table of all metrics: key in the code, exported name, help text, reduction over steps and ranks, label.

Names follow Prometheus: `dist_ssl_<noun>_<unit>`, base units, counters end in `_total`. A key that has no row here is
refused where it is first known: the hyperparameters' names at submission, all others when they are first recorded.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from dist_ssl.errors import UserError, nearest

Reduction = Literal["mean", "max", "sum", "last"]


@dataclass(frozen=True)
class Metric:
    """One metric. `reduction`: over the steps since the last flush and over ranks (`last`: rank 0's newest value).

    `label`: name of the label of a metric that has one series for each of the label's values, under the keys
    `KEY/VALUE`; empty for a metric with one series, under `KEY`. `plain`: the label's value that the key `KEY` alone
    stands for; empty where a value must be given.
    """

    key: str
    name: str
    help: str
    reduction: Reduction = "mean"
    label: str = ""
    plain: str = ""


METRICS: tuple[Metric, ...] = (
    Metric("loss", "dist_ssl_loss", "Training loss, mean over the job."),
    Metric("gradient_norm", "dist_ssl_gradient_norm", "Norm of the averaged gradient before clipping."),
    Metric(
        "feature_std",
        "dist_ssl_feature_std",
        "Standard deviation of normalised embeddings per dimension; 0 is collapse.",
    ),
    Metric("positive_similarity", "dist_ssl_positive_similarity", "Cosine of embeddings with their own keys."),
    Metric("queue_age", "dist_ssl_queue_age_steps", "Mean age of the queue's keys in steps.", "last"),
    Metric("negative_similarity", "dist_ssl_negative_similarity", "Mean cosine of two samples; 1 is collapse."),
    Metric("effective_rank", "dist_ssl_effective_rank", "Dimensions that embeddings use (participation ratio)."),
    Metric(
        "teacher_distance",
        "dist_ssl_teacher_distance_ratio",
        "How far the teacher's weights are from its student's, as a share of their norm.",
    ),
    Metric("rotation_loss", "dist_ssl_rotation_loss", "Loss of the rotation task, before its weight."),
    Metric("coding_rate", "dist_ssl_coding_rate_nats", "Mean coding rate of the groups' embeddings."),
    Metric(
        "lr",
        "dist_ssl_learning_rate",
        "Learning rate of the newest step; 'all' stands for parts without a rate of their own.",
        "last",
        label="part",
        plain="all",
    ),
    Metric("weight_decay", "dist_ssl_weight_decay", "Weight decay of the newest step.", "last"),
    Metric("momentum", "dist_ssl_teacher_momentum", "Momentum of the teacher's newest EMA update.", "last"),
    Metric("teacher_temperature", "dist_ssl_teacher_temperature", "Temperature of the teacher's outputs.", "last"),
    Metric(
        "frozen", "dist_ssl_frozen_ratio", "Share of a part's frozen period that is left, 1 to 0.", "last", label="part"
    ),
    Metric("image_size", "dist_ssl_image_size_pixels", "Side of a view in this epoch.", "last"),
    Metric("magnitude", "dist_ssl_magnitude_ratio", "Strength of this epoch's augmentations; 1: as published.", "last"),
    Metric("batch_size", "dist_ssl_batch_size_samples", "Samples per step in this epoch, whole job.", "last"),
    Metric("images_per_second", "dist_ssl_images_per_second", "Images trained per second, whole job.", "last"),
    Metric("step_seconds", "dist_ssl_step_seconds", "Wall time of a step, mean since the last report.", "last"),
    Metric("data_wait_seconds", "dist_ssl_data_wait_seconds", "Wait of a step for its batch, slowest rank.", "max"),
    Metric("replaced_samples", "dist_ssl_replaced_samples", "Unreadable samples since the last report.", "sum"),
    Metric("fetched_bytes", "dist_ssl_fetched_bytes", "Bytes of shards fetched since the last report.", "sum"),
    Metric("fetch_retries", "dist_ssl_fetch_retries", "Fetches that were tried again since the last report.", "sum"),
    Metric("cache_hits", "dist_ssl_cache_hits", "Shards opened from the node's cache since the last report.", "sum"),
    Metric(
        "cache_misses",
        "dist_ssl_cache_misses",
        "Shards opened that the node's cache did not hold, since the last report.",
        "sum",
    ),
    Metric(
        "bad_samples",
        "dist_ssl_bad_samples",
        "Samples of the run that cannot be read, by reason.",
        "last",
        label="reason",
    ),
    Metric(
        "slow_images",
        "dist_ssl_slow_images",
        "Images that needed a slow decoder since the last report.",
        "sum",
        label="reason",
    ),
    Metric(
        "read_images",
        "dist_ssl_read_images",
        "Images read from each level of a pyramid since the last report.",
        "sum",
        label="level",
    ),
    Metric("knn_accuracy", "dist_ssl_knn_accuracy_ratio", "Accuracy of the kNN probe, 0 to 1.", "last"),
    Metric("probe_seconds", "dist_ssl_probe_seconds", "Wall time of the last kNN probe.", "last"),
    Metric("epoch", "dist_ssl_epoch", "Epochs finished.", "last"),
    Metric("step", "dist_ssl_step", "Weight updates made.", "last"),
    Metric("samples", "dist_ssl_samples", "Samples trained in the whole run.", "last"),
    Metric("attempt", "dist_ssl_attempts", "Attempts of this run, this one included.", "last"),
    Metric("seconds_left", "dist_ssl_left_seconds", "Time to the end of the run at the present speed.", "last"),
    Metric("save_stall_seconds", "dist_ssl_save_stall_seconds", "Wait for saves since the last report.", "max"),
    Metric("save_seconds", "dist_ssl_save_seconds", "Time that the last save took beside training.", "last"),
    Metric("saved_step", "dist_ssl_saved_step", "Step of the newest checkpoint.", "last"),
    Metric("failed_saves", "dist_ssl_failed_saves", "Saves of this attempt that failed.", "last"),
    Metric("checkpoint_age_seconds", "dist_ssl_checkpoint_age_seconds", "Time since the last checkpoint.", "last"),
)

BY_KEY = {metric.key: metric for metric in METRICS}


def series_of(key: str) -> tuple[Metric, str]:
    """Return the metric that a key belongs to and the value of its label, empty where it has none.

    `bad_samples/empty` is ("bad_samples", "empty"), `loss` is ("loss", ""). Raises UserError where no row fits the key.
    """
    name, slash, value = key.partition("/")
    metric = BY_KEY.get(name)
    if metric is not None:
        value = value if slash else metric.plain
        if bool(value) == bool(metric.label):
            return metric, value
    keys = [f"{m.key}/{m.label.upper()}" if m.label and not m.plain else m.key for m in METRICS]
    raise UserError(
        f"The metric '{key}' has no row in the metric table.",
        f"Add a row to dist_ssl/metrics/table.py, or correct the key. {nearest(key, keys)}",
    )


def check_keys(keys: Iterable[str]) -> None:
    """Raise UserError where a key has no row in the table."""
    for key in keys:
        series_of(key)
