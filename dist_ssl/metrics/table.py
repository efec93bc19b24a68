"""The table of all metrics: key in the code, exported name, help text, reduction over steps and ranks, label, panel.

A run has at most 80 series, whatever happens to it: `most_series` computes it from the table, and a test fails where a
new row breaks the bound. So a label has a closed list of values, and what follows from other metrics has a query.

Names follow Prometheus: `dist_ssl_<noun>_<unit>`, base units; those of counters end in `_total`. So the name says type
and unit. The dashboards of `monitoring/` show every metric on the panel that its row names. A key without a row is
refused where it is first known: the hyperparameters' names at submission, all others when they are first recorded.

A report holds a counter's increase since the last report, or, where its reduction is `last`, its total. The
endpoint exports the sum over all attempts of a run: a run is one target with the same labels, and no counter goes back.
"""

from collections.abc import Iterable

from dist_ssl.errors import UserError, nearest
from dist_ssl.metrics.table_row import Metric
from dist_ssl.runtime.end_names import RESTARTS

METRICS: tuple[Metric, ...] = (
    Metric("loss", "loss", "Training loss, mean over the job.", "Loss"),
    Metric("rotation_loss", "rotation_loss", "Loss of the rotation task, before its weight.", "Loss"),
    Metric("knn_accuracy", "knn_accuracy_ratio", "Accuracy of the kNN probe, 0 to 1.", "kNN accuracy", "last"),
    Metric(
        "evaluation",
        "evaluation_accuracy_ratio",
        "Accuracy of the newest evaluated checkpoint, the best of its branches.",
        "Evaluations",
        "last",
        label="protocol",
        values=("knn", "linear"),
    ),
    Metric("gradient_norm", "gradient_norm", "Norm of the averaged gradient before clipping.", "Gradient norm"),
    Metric("positive_similarity", "positive_similarity", "Mean cosine of two embeddings of one sample.", "Cosines"),
    Metric("negative_similarity", "negative_similarity", "Mean cosine of two samples; 1 is collapse.", "Cosines"),
    Metric("feature_std", "feature_std", "Standard deviation of unit embeddings; 0 is collapse.", "Spread"),
    Metric("effective_rank", "effective_rank", "Dimensions in use (participation ratio).", "Effective rank"),
    Metric(
        "teacher_distance",
        "teacher_distance_ratio",
        "Distance of the teacher's weights, as a share of their norm.",
        "Teacher distance",
    ),
    Metric(
        "queue_age",
        "queue_age_steps",
        "Mean age of the queue's keys in steps.",
        "Queue age",
        "last",
        methods=("mocov2",),
    ),
    Metric(
        "difficulty",
        "difficulty",
        "Mean difficulty of the pairs of views that were chosen, and of the first candidates.",
        "Difficulty of views",
        label="pair",
        values=("chosen", "first"),
    ),
    Metric(
        "coding_rate",
        "coding_rate_nats",
        "Mean coding rate of the groups' embeddings.",
        "Coding rate",
        methods=("emp_ssl",),
    ),
    Metric(
        "lr",
        "learning_rate",
        "Learning rate; 'all': parts without a rate of their own; 'others': the largest.",
        "Learning rate",
        "last",
        label="part",
        plain="all",
        values=("all", "predictor"),
        rest="others",
    ),
    Metric("weight_decay", "weight_decay", "Weight decay of the newest step.", "Weight decay", "last"),
    Metric("momentum", "teacher_momentum", "Momentum of the teacher's newest EMA update.", "Teacher momentum", "last"),
    Metric(
        "teacher_temperature",
        "teacher_temperature",
        "Temperature of the teacher's outputs.",
        "Teacher temperature",
        "last",
        methods=("dino",),
    ),
    Metric(
        "frozen",
        "frozen_ratio",
        "Share of a part's frozen period left, 1 to 0, the longest.",
        "Frozen parts",
        "last",
        label="part",
        rest="any",
        methods=("dino", "swav"),
    ),
    Metric("image_size", "image_size_pixels", "Side of a view in this epoch.", "Image size", "last"),
    Metric("magnitude", "magnitude_ratio", "Strength of the augmentations; 1 is as published.", "Augmentation", "last"),
    Metric("batch_size", "batch_samples", "Samples of a step in this epoch, whole job.", "Batch size", "last"),
    Metric("images_per_second", "images_per_second", "Images trained per second, whole job.", "Throughput", "last"),
    Metric("views_per_second", "views_per_second", "Views trained per second, whole job.", "Throughput", "last"),
    Metric(
        "step_seconds",
        "step_seconds",
        "Wall time of a step, mean since the last report.",
        "Step time",
        "last",
        instead='dist_ssl_batch_samples{run=~"$run"} / dist_ssl_images_per_second{run=~"$run"}',
    ),
    Metric(
        "step_parts",
        "step_part_seconds_total",
        "Time of steps by part, mean over the ranks; all parts together are all steps.",
        "Step time by part",
        "sum",
        label="part",
        values=("data", "copy", "forward", "loss", "backward", "optimizer", "memory", "other"),
    ),
    Metric(
        "rank_work_seconds",
        "rank_work_seconds",
        "Time of a step in which a rank waits for no other: batch and embeddings, mean.",
        "Work of the ranks",
        "mean",
    ),
    Metric(
        "slowest_rank_work_seconds",
        "slowest_rank_work_seconds",
        "The same of the slowest rank.",
        "Work of the ranks",
        "max",
    ),
    Metric(
        "flops_utilisation",
        "flops_utilisation_ratio",
        "Encoders' FLOPs per second as a share of the GPU's peak (MFU), where it is known.",
        "FLOPs utilisation",
    ),
    Metric("slowest_node", "slowest_node", "Number of the node with the slowest rank.", "Slowest node", "last"),
    Metric(
        "data_wait_seconds",
        "data_wait_seconds",
        "Wait of a step for its batch, slowest rank; on the panel the mean.",
        "Step time",
        "max",
        instead='rate(dist_ssl_step_part_seconds_total{part="data",run=~"$run"}[$window])'
        ' * ignoring (part) dist_ssl_batch_samples{run=~"$run"} / dist_ssl_images_per_second{run=~"$run"}',
    ),
    Metric("host_memory", "host_memory_bytes", "Resident memory of a rank's process, largest.", "Memory", "max"),
    Metric(
        "device_memory", "device_memory_ratio", "Largest share of a GPU's memory taken by tensors.", "GPU memory", "max"
    ),
    Metric(
        "probe_seconds",
        "probe_seconds",
        "Wall time of the last kNN probe; on the panel of those within the window.",
        "Probe time",
        "last",
        instead='delta(dist_ssl_spent_seconds{cause="probe",run=~"$run"}[$window])',
    ),
    Metric("ranks", "ranks", "Ranks of this attempt.", "Ranks", "last"),
    Metric("progress", "progress_ratio", "Share of the run's samples that are trained.", "Progress", "last"),
    Metric(
        "seconds_left",
        "left_seconds",
        "Time to the end of the run at the present speed.",
        "Time left",
        "last",
        instead='dist_ssl_samples{run=~"$run"} * (1 / dist_ssl_progress_ratio{run=~"$run"} - 1)'
        ' / dist_ssl_images_per_second{run=~"$run"}',
    ),
    Metric("epoch", "epoch", "Epochs finished.", "Epoch", "last"),
    Metric("samples", "samples", "Samples trained in the whole run.", "Samples", "last"),
    Metric("step", "step", "Weight updates made.", "Steps", "last"),
    Metric("saved_step", "saved_step", "Step of the newest checkpoint.", "Steps", "last"),
    Metric("fetched_bytes", "fetched_bytes_total", "Bytes of shards fetched.", "Bytes fetched", "sum"),
    Metric("fetch_retries", "fetch_retries_total", "Fetches that were tried again.", "Fetch retries", "sum"),
    Metric("cache_hits", "cache_hits_total", "Shards opened from the node's cache.", "Shard cache", "sum"),
    Metric("cache_misses", "cache_misses_total", "Shards opened that the cache did not hold.", "Shard cache", "sum"),
    Metric(
        "bad_samples",
        "bad_samples_total",
        "Samples that cannot be read.",
        "Unreadable samples",
        "last",
        label="reason",
        values=("damaged image", "not an image"),
        rest="another",
    ),
    Metric(
        "replaced_samples",
        "replaced_samples_total",
        "Samples trained in place of others.",
        "Replacement samples",
        "sum",
    ),
    Metric(
        "slow_images",
        "slow_images_total",
        "Images that needed a slow decoder.",
        "Slow images",
        "sum",
        label="reason",
        rest="any",
    ),
    Metric(
        "read_images",
        "read_images_total",
        "Images read, by level of the pyramid.",
        "Pyramid levels",
        "sum",
        label="level",
        values=("original",),
        rest="smaller",
    ),
    Metric(
        "spent_seconds",
        "spent_seconds",
        "Wall time by cause; adds up to the run's age.",
        "Wall clock by cause",
        "last",
        label="cause",
        values=("train", "data", "save", "probe", "restore", "start", "queue", "lost"),
    ),
    Metric("lost_steps", "lost_steps_total", "Steps that had to be made again, whole run.", "Lost steps", "last"),
    Metric(
        "restarts",
        "restarts_total",
        "Attempts before this one, by the cause for which there is another one.",
        "Restarts",
        "last",
        label="cause",
        values=RESTARTS,
        rest="by hand",
    ),
    Metric("attempt", "attempts_total", "Attempts of this run, this one included.", "Attempts", "last"),
    Metric(
        "checkpoint_timestamp",
        "checkpoint_timestamp_seconds",
        "When the newest checkpoint was published.",
        "Checkpoint age",
        "last",
    ),
    Metric("report_timestamp", "report_timestamp_seconds", "When the run reported last.", "Report age", "last"),
    Metric("save_seconds", "save_seconds", "Time that the last save took beside training.", "Save time", "last"),
    Metric(
        "restore_seconds",
        "restore_seconds",
        "Time that this attempt's restore took; on the panel of those within the window.",
        "Save time",
        "last",
        instead='delta(dist_ssl_spent_seconds{cause="restore",run=~"$run"}[$window])',
    ),
    Metric(
        "save_stall_seconds", "save_stall_seconds_total", "Time that training waited for saves.", "Save stall", "max"
    ),
    Metric("failed_saves", "failed_saves_total", "Saves that failed.", "Checkpoint failures", "max"),
    Metric(
        "damaged_checkpoints", "damaged_checkpoints_total", "Checkpoints found damaged.", "Checkpoint failures", "max"
    ),
    Metric("checkpoint_bytes", "checkpoint_bytes", "Size of the newest checkpoint.", "Disk", "last"),
    Metric("free_disk", "free_disk_bytes", "Free space where the run folder is.", "Disk", "last"),
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
        if bool(value) == bool(metric.label) and (not value or metric.exported(value)):
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
