"""Refuses a checkpoint that was made under other values than the run has now, where its result depends on them.

A config is a file that can be edited, so each checkpoint tells its own. One of before says nothing, and is believed.
"""

from collections.abc import Mapping
from typing import Any

from dist_ssl.errors import CheckpointError

MAY_GROW = "extend"
"""The key of the cycles that are appended to a run: each comes after the checkpoints before it."""
MOST_SHOWN = 60
"""Characters that are shown of a value."""


def refuse_other_science(name: str, made: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise CheckpointError where a checkpoint was made under other values than those of now; null is no value.

    Nothing is compared where either is not known.
    """
    keys = (made.keys() | now.keys()) - {MAY_GROW} if made and now else set[str]()
    for key in sorted(keys):
        if made.get(key) != now.get(key):
            before, after = (str(values.get(key))[:MOST_SHOWN] for values in (made, now))
            raise CheckpointError(
                f"{key}={after} is not what {name} was made under ({before}): the result of the run depends on it.",
                f"Write {key}={before} into the run's config.yaml again and leave it out of the command, "
                "or start a new run.",
            )
