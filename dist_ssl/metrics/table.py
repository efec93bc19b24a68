"""Every metric of the system, once: its key in the code, its exported name, its help text and its reduction.

Names follow Prometheus: `dist_ssl_<noun>_<unit>`, base units, counters end in `_total`.
"""

from dataclasses import dataclass
from typing import Literal

Reduction = Literal["mean", "max", "sum", "last"]


@dataclass(frozen=True)
class Metric:
    """One metric. `reduction`: over the steps since the last flush and over ranks (`last`: rank 0's newest value).

    `label`: where it is not empty there is one number for each of its values, under the key `KEY/VALUE`.
    """

    key: str
    name: str
    help: str
    reduction: Reduction = "mean"
    label: str = ""


METRICS: tuple[Metric, ...] = (
    Metric("loss", "dist_ssl_loss", "Training loss, mean over the job."),
    Metric("gradient_norm", "dist_ssl_gradient_norm", "Norm of the averaged gradient before clipping."),
    Metric(
        "feature_std",
        "dist_ssl_feature_std",
        "Standard deviation of normalised embeddings per dimension; 0 is collapse.",
    ),
    Metric("positive_similarity", "dist_ssl_positive_similarity", "Cosine of embeddings with their own keys."),
    Metric("queue_age", "dist_ssl_queue_age_steps", "Steps since the queue's keys were made, on average.", "last"),
    Metric("negative_similarity", "dist_ssl_negative_similarity", "Mean cosine of two samples; 1 is collapse."),
    Metric("effective_rank", "dist_ssl_effective_rank", "Dimensions that embeddings use (participation ratio)."),
    Metric(
        "teacher_distance",
        "dist_ssl_teacher_distance_ratio",
        "How far the teacher's weights are from its student's, as a share of their norm.",
    ),
    Metric("rotation_loss", "dist_ssl_rotation_loss", "Loss of the rotation task, before its weight."),
    Metric("coding_rate", "dist_ssl_coding_rate_nats", "Mean coding rate of the groups' embeddings."),
    Metric("lr", "dist_ssl_learning_rate", "Learning rate of the newest step.", "last"),
    Metric("lr/student", "dist_ssl_student_learning_rate", "Learning rate of a student with one of its own.", "last"),
    Metric(
        "lr/predictor", "dist_ssl_predictor_learning_rate", "Learning rate of a predictor with one of its own.", "last"
    ),
    Metric(
        "lr/rotation",
        "dist_ssl_rotation_learning_rate",
        "Learning rate of a rotation head with one of its own.",
        "last",
    ),
    Metric(
        "lr/prototypes",
        "dist_ssl_prototypes_learning_rate",
        "Learning rate of prototypes with one of their own.",
        "last",
    ),
    Metric("weight_decay", "dist_ssl_weight_decay", "Weight decay of the newest step.", "last"),
    Metric("momentum", "dist_ssl_teacher_momentum", "Momentum of the teacher's newest move.", "last"),
    Metric("teacher_temperature", "dist_ssl_teacher_temperature", "Temperature of the teacher's outputs.", "last"),
    Metric(
        "frozen", "dist_ssl_frozen_ratio", "What is left of the time without learning, 1 to 0.", "last", label="part"
    ),
    Metric("image_size", "dist_ssl_image_size_pixels", "Side of a view in this epoch.", "last"),
    Metric("images_per_second", "dist_ssl_images_per_second", "Images trained per second, whole job.", "last"),
    Metric("step_seconds", "dist_ssl_step_seconds", "Wall time of a step, mean since the last report.", "last"),
    Metric("data_wait_seconds", "dist_ssl_data_wait_seconds", "Wait of a step for its batch, slowest rank.", "max"),
    Metric("replaced_samples", "dist_ssl_replaced_samples", "Unreadable samples since the last report.", "sum"),
    Metric("fetched_bytes", "dist_ssl_fetched_bytes", "Bytes of shards fetched since the last report.", "sum"),
    Metric("fetch_retries", "dist_ssl_fetch_retries", "Fetches that were tried again since the last report.", "sum"),
    Metric("cache_hits", "dist_ssl_cache_hits", "Shards opened from the node's cache since the last report.", "sum"),
    Metric("cache_misses", "dist_ssl_cache_misses", "Shards opened that it did not hold yet.", "sum"),
    Metric("bad_samples", "dist_ssl_bad_samples", "Samples of the run that cannot be read.", "last", label="reason"),
    Metric(
        "slow_images", "dist_ssl_slow_images", "Images decoded a slow way since the last report.", "sum", label="reason"
    ),
    Metric("read_images", "dist_ssl_read_images", "Images read from each level of a pyramid.", "sum", label="level"),
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


def metric_of(key: str) -> Metric:
    """The metric that a number belongs to: the one of just this key, or `bad_samples` of `bad_samples/empty`."""
    return BY_KEY[key if key in BY_KEY else key.partition("/")[0]]
