"""The command that writes the alert rules for Prometheus.

    python monitoring/alert_rules.py

A rule fires on what a person has to do something about; what to do stands in `monitoring/RUNBOOK.md` under the rule's
name. Rules compare a run with its own past where no bound fits all runs; what takes hours of samples is recorded
(`monitoring/recordings.py`).
"""

from pathlib import Path
from typing import Any

import yaml

from dist_ssl.runtime.end_names import NOT_FINITE, PLANS_DIFFER, REFUSED
from monitoring.alert_form import Alert, rule
from monitoring.recordings import median, recordings, share, shares

HEADER = """\
# Alert rules, written by `python monitoring/alert_rules.py`; what to do about each: monitoring/RUNBOOK.md.
"""
FILE = Path(__file__).parent / "alerts.yml"


NAMED_ENDS = (NOT_FINITE, PLANS_DIFFER, REFUSED)
"""Ends of attempts (launch/end_notice.py) that have an alert of their own."""


def ended(ends: str, sign: str = "=") -> str:
    """Return when a run has ended so, by its target or, where that cannot be scraped, by its text file."""
    return f'up{{job="dist_ssl",end{sign}"{ends}"}} == 0 or dist_ssl_ended{{end{sign}"{ends}"}} == 1'


STARTING = f'sum without (cause) ({shares("2h")}{{cause=~"start|restore"}})'
ALERTS = (
    Alert(
        "RunLost",
        "critical",
        "2m",
        "does not answer: its node or rank 0 is gone.",
        ended("|".join(NAMED_ENDS), "!~"),
    ),
    Alert(
        "LossNotFinite",
        "critical",
        "1m",
        "has ended: its loss or its gradient was not finite.",
        ended(NOT_FINITE),
    ),
    Alert(
        "PlansDiffer",
        "critical",
        "1m",
        "has ended: its ranks would not have trained the same epoch.",
        ended(PLANS_DIFFER),
    ),
    Alert("RunRefused", "critical", "1m", "has ended with an error that a person has to fix.", ended(REFUSED)),
    Alert(
        "StoppedEarly",
        "warning",
        "10m",
        "has ended before it was finished, and is not resumed.",
        "last_over_time(dist_ssl_progress_ratio[2h]) < 1 unless dist_ssl_progress_ratio"
        ' unless on (run) up{job="dist_ssl"} unless on (run) dist_ssl_ended',
    ),
    Alert(
        "NoProgress",
        "critical",
        "1m",
        "has not reported for 15 minutes.",
        "time() - dist_ssl_report_timestamp_seconds > 900",
    ),
    Alert(
        "RestartLoop",
        "critical",
        "0m",
        "has started 3 times within an hour.",
        "increase(dist_ssl_attempts_total[1h]) > 2.5",
    ),
    Alert(
        "CollapseToPoint",
        "critical",
        "30m",
        "collapses: embeddings of different images are the same.",
        "dist_ssl_negative_similarity > 0.99",
    ),
    Alert(
        "CollapseOfDimensions",
        "critical",
        "30m",
        "collapses: its embeddings use one dimension.",
        "dist_ssl_effective_rank < 1.5",
    ),
    Alert(
        "AccuracyFalling",
        "warning",
        "30m",
        "has lost a fifth of the best kNN accuracy of the last day.",
        "dist_ssl_knn_accuracy_ratio < 0.8 * max_over_time(dist_ssl_knn_accuracy_ratio[1d])",
    ),
    Alert(
        "GradientSpike",
        "warning",
        "5m",
        "has gradients ten times as large as in the last hour.",
        f"dist_ssl_gradient_norm > 10 * {median('dist_ssl_gradient_norm')}",
    ),
    Alert(
        "LossRising",
        "warning",
        "30m",
        "has a loss far above that of the last six hours.",
        f"dist_ssl_loss - {median('dist_ssl_loss')} > 0.5 * abs({median('dist_ssl_loss')})"
        " unless changes(dist_ssl_image_size_pixels[6h]) > 0",
    ),
    Alert(
        "TeacherStandsStill",
        "warning",
        "30m",
        "has a teacher that equals its student.",
        "dist_ssl_teacher_distance_ratio == 0 and dist_ssl_step > 100",
    ),
    Alert(
        "ThroughputDrop",
        "warning",
        "15m",
        "is a third slower than it was over six hours.",
        f"dist_ssl_images_per_second < 0.67 * {median('dist_ssl_images_per_second')}"
        " unless changes(dist_ssl_image_size_pixels[6h]) > 0",
    ),
    Alert("DataStarvation", "warning", "15m", "waits for data a fifth of the time.", f"{share('data', '30m')} > 0.2"),
    Alert(
        "Straggler",
        "warning",
        "30m",
        "waits for a rank that works half as long again as the mean of all.",
        "dist_ssl_slowest_rank_work_seconds > 1.5 * dist_ssl_rank_work_seconds",
    ),
    Alert(
        "NodeLost",
        "warning",
        "2m",
        "has lost the agent of node {{ $labels.node }}.",
        'up{job="dist_ssl_node"} == 0',
    ),
    Alert(
        "GPUsIdle",
        "warning",
        "30m",
        "leaves the GPUs of node {{ $labels.node }} idle four fifths of the time.",
        "dist_ssl_node_gpu_use_ratio < 0.2",
    ),
    Alert(
        "NodeMemoryNearlyFull",
        "warning",
        "10m",
        "runs on node {{ $labels.node }}, whose memory is 95 % taken.",
        "dist_ssl_node_used_memory_bytes > 0.95 * dist_ssl_node_memory_bytes",
    ),
    Alert(
        "NodeDiskNearlyFull",
        "critical",
        "5m",
        "has less than 2 GB left on node {{ $labels.node }} for the {{ $labels.place }}.",
        'dist_ssl_node_free_bytes{place=~"run|cache"} < 2e9',
    ),
    Alert(
        "SlowStorage",
        "warning",
        "15m",
        "repeats more than one of five fetches.",
        "increase(dist_ssl_fetch_retries_total[30m]) > 0.2 * (increase(dist_ssl_cache_misses_total[30m]) + 1)",
    ),
    Alert(
        "CacheTooSmall",
        "info",
        "30m",
        "fetches most shards again after the first epoch.",
        "increase(dist_ssl_cache_misses_total[1h]) > increase(dist_ssl_cache_hits_total[1h])"
        " and increase(dist_ssl_cache_misses_total[1h]) > 10 and dist_ssl_epoch >= 2",
    ),
    Alert(
        "UnreadableSamples",
        "warning",
        "5m",
        "trains replacements in place of more than 1 % of its samples.",
        "rate(dist_ssl_replaced_samples_total[30m]) > 0.01 * dist_ssl_images_per_second",
    ),
    Alert(
        "SlowDecoding",
        "info",
        "30m",
        "decodes most of its images by a slow decoder.",
        "sum without (reason) (rate(dist_ssl_slow_images_total[30m])) > 0.5 * dist_ssl_images_per_second",
    ),
    Alert(
        "CheckpointOld",
        "critical",
        "5m",
        "has not saved for two hours.",
        "time() - dist_ssl_checkpoint_timestamp_seconds > 7200",
    ),
    Alert(
        "NeverSaved",
        "warning",
        "2h",
        "has trained for two hours without a checkpoint.",
        "dist_ssl_step > 0 unless dist_ssl_checkpoint_timestamp_seconds",
    ),
    Alert("SavesFail", "critical", "0m", "could not save.", "increase(dist_ssl_failed_saves_total[30m]) > 0"),
    Alert(
        "CheckpointDamaged",
        "warning",
        "0m",
        "found a damaged checkpoint.",
        "increase(dist_ssl_damaged_checkpoints_total[2h]) > 0",
    ),
    Alert(
        "SaveSlow",
        "warning",
        "0m",
        "needs longer for a save than the 3 minutes before a time limit.",
        "dist_ssl_save_seconds > 150",
    ),
    Alert("SaveStall", "warning", "15m", "waits for saves a tenth of the time.", f"{share('save', '1h')} > 0.1"),
    Alert(
        "DiskNearlyFull",
        "critical",
        "5m",
        "has no room for two more checkpoints.",
        "dist_ssl_free_disk_bytes < 2 * dist_ssl_checkpoint_bytes",
    ),
    Alert(
        "DiskFilling",
        "warning",
        "30m",
        "fills its disk within a day.",
        "predict_linear(dist_ssl_free_disk_bytes[6h], 86400) < 0",
    ),
    Alert(
        "GPUMemoryNearlyFull",
        "warning",
        "5m",
        "uses 97 % of a GPU's memory.",
        "dist_ssl_device_memory_ratio > 0.97",
    ),
    Alert(
        "MemoryGrowing",
        "warning",
        "1h",
        "has a process half as large again as three hours ago.",
        "dist_ssl_host_memory_bytes > 1.5 * (dist_ssl_host_memory_bytes offset 3h)"
        " unless changes(dist_ssl_attempts_total[4h]) > 0",
    ),
    Alert("SlowProbe", "info", "30m", "spends a quarter of its time on the probe.", f"{share('probe', '2h')} > 0.25"),
    Alert("SlowStart", "warning", "5m", "spends a quarter of its time on starting.", f"{STARTING} > 0.25"),
    Alert("GoodputLow", "warning", "30m", "trains less than half of the time.", f"{share('train', '2h')} < 0.5"),
    Alert(
        "LostWork",
        "warning",
        "0m",
        "has thrown away a tenth of a day's work.",
        f"{share('lost', '1d')} > 0.1",
    ),
    Alert(
        "FewerRanks",
        "info",
        "15m",
        "runs on fewer ranks than within the last day.",
        "dist_ssl_ranks < max_over_time(dist_ssl_ranks[1d])",
    ),
)


def rules() -> dict[str, Any]:
    """Return the rules in Prometheus' format."""
    return {"groups": [recordings(), {"name": "dist_ssl", "rules": [rule(alert) for alert in ALERTS]}]}


def text() -> str:
    """Return the text of the file of rules."""
    return HEADER + yaml.safe_dump(rules(), sort_keys=False, width=110)


if __name__ == "__main__":
    FILE.write_text(text())
