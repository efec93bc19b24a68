"""The recording rules: once a minute Prometheus keeps what alert rules would else compute anew at every evaluation.

Shares of the wall clock and medians take hours of samples, and several rules, or both sides of one, use the same. They
are recorded under names of the form `label:metric:operation`.
"""

from typing import Any

SPENT = "dist_ssl_spent_seconds"
EVERY = "1m"
SHARE_WINDOWS = ("30m", "1h", "2h", "1d")
MEDIANS = {"dist_ssl_gradient_norm": "1h", "dist_ssl_loss": "6h", "dist_ssl_images_per_second": "6h"}
"""Metrics whose medians are recorded, and over which time."""


def shares(window: str) -> str:
    """Return the name under which the shares of all causes in the wall clock of the last time are recorded."""
    return f"cause:{SPENT}:share{window}"


def share(cause: str, window: str) -> str:
    """Return the recorded share of a cause."""
    return f'{shares(window)}{{cause="{cause}"}}'


def median(metric: str) -> str:
    """Return the name under which a gauge's median over the last time is recorded."""
    return f"run:{metric}:median{MEDIANS[metric]}"


RECORDED = {
    **{
        shares(window): f"delta({SPENT}[{window}])"
        f" / ignoring (cause) group_left sum without (cause) (delta({SPENT}[{window}]))"
        for window in SHARE_WINDOWS
    },
    **{median(metric): f"quantile_over_time(0.5, {metric}[{window}])" for metric, window in MEDIANS.items()},
}
"""The expressions that are recorded, by the names that rules use."""


def recordings() -> dict[str, Any]:
    """Return the group of these rules in Prometheus' format."""
    rules = [{"record": name, "expr": expression} for name, expression in RECORDED.items()]
    return {"name": "dist_ssl_recorded", "interval": EVERY, "rules": rules}
