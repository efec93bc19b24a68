"""Names of how attempts end and of why others follow them, in run folders, in labels of metrics and in alerts alike.

Folders and Prometheus keep them for years, so a name stays as it is.
"""

FINISHED, STOPPED, REFUSED, FAILED = "finished", "stopped", "refused", "failed"
"""The outcomes of an attempt; refused: because of an error that the user can fix."""
PREEMPTED, OUT_OF_TIME, LOST = "preempted", "time limit", "something was lost"
"""Why the epilogue requeues a job."""
WORKER_DIED, OUT_OF_MEMORY, NODE_LOST = "worker died", "out of memory", "node lost"
"""Causes of failures."""
NOT_FINITE, PLANS_DIFFER = "loss not finite", "plans differ"
"""Causes of refusals that have a name of their own."""

ENDS = (NOT_FINITE, PLANS_DIFFER, REFUSED, WORKER_DIED, OUT_OF_MEMORY, NODE_LOST)
"""The ends with an error that a target and the metric `ended` can name, one at a time."""
RESTARTS = (PREEMPTED, OUT_OF_TIME, WORKER_DIED, OUT_OF_MEMORY, NODE_LOST)
"""The causes of restarts that the metric `restarts` names; it counts those that a person decided on together."""
