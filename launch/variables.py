"""Names of the environment variables by which the processes of a run know it."""

RUN = "DIST_SSL_RUN"
"""The run folder, in a batch script."""
ATTEMPT = "DIST_SSL_ATTEMPT"
"""The number of the attempt, in a batch script and its tasks."""
PARENT = "DIST_SSL_PARENT"
"""The process id of who started this one."""
