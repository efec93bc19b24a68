"""Which jobs come back: those that Slurm took away, and none that a person did not want or that broke."""

import pytest

from launch.ending import FAILED, FINISHED, REFUSED, STOPPED, Ending
from launch.epilogue import read_record, why_again

RECORD = """JobId=3 JobName=a b
   JobState=RUNNING Reason=None Dependency=(null)
   PreemptEligibleTime=2026-01-01T05:39:37 PreemptTime=None
   NodeList=n[1-2] StdOut=/tmp/x=y.out
"""


def test_a_record_is_read_key_by_key() -> None:
    record = read_record(RECORD)
    assert record["JobState"] == "RUNNING"
    assert record["PreemptTime"] == "None"
    assert record["StdOut"] == "/tmp/x=y.out"
    assert read_record("") == {}


PREEMPTED = {"JobState": "RUNNING", "PreemptTime": "2026-01-01T05:40:00"}
PLAIN = {"JobState": "RUNNING", "PreemptTime": "None"}


@pytest.mark.parametrize(
    ("ending", "record", "why"),
    [
        (Ending(STOPPED, signal="SIGTERM"), PREEMPTED, "preempted"),
        (Ending(FAILED), PREEMPTED, "preempted"),
        (Ending(STOPPED, signal="SIGUSR2"), PLAIN, "time limit"),
        (Ending(STOPPED, signal="SIGTERM"), PLAIN, ""),
        (Ending(STOPPED, signal="SIGTERM"), {}, ""),
        (Ending(FAILED), PLAIN, ""),
        (Ending(FAILED, signal="SIGUSR2"), PLAIN, ""),
        (Ending(FINISHED), PREEMPTED, ""),
        (Ending(FINISHED, signal="SIGUSR2"), PLAIN, ""),
        (Ending(REFUSED), PREEMPTED, ""),
        (Ending(STOPPED, signal="SIGTERM"), {**PREEMPTED, "JobState": "CANCELLED"}, ""),
    ],
)
def test_who_comes_back(ending: Ending, record: dict[str, str], why: str) -> None:
    assert why_again(ending, record) == why
