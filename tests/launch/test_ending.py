"""How an attempt ended is derived from exit codes and reports, and from what is left without them."""

import signal
from pathlib import Path

import pytest

from dist_ssl.runtime.end_names import FAILED, FINISHED, REFUSED, STOPPED
from launch.ending import CODE_OF_OUTCOME, STOPPED_CODE, Ending, describe, last_words, of_attempt, of_ranks, worst
from launch.run_dir import AttemptDir, RunDir


@pytest.fixture
def attempt(tmp_path: Path) -> AttemptDir:
    """An attempt of which nothing is written yet."""
    return RunDir(tmp_path).new_attempt({})


def log_of(node: int) -> Path:
    """Where an agent's log would be."""
    return Path("logs") / f"{node}.log"


def give(attempt: AttemptDir, rank: int, text: str) -> None:
    """A rank says why it gives up."""
    attempt.reserve_reason(rank)
    attempt.give_reason(rank, text)


def test_all_ranks_at_the_end_is_the_end(attempt: AttemptDir) -> None:
    assert of_ranks(attempt, {0: 0, 1: 0}, None) == Ending(FINISHED)


def test_all_ranks_stopped_is_a_stop(attempt: AttemptDir) -> None:
    assert of_ranks(attempt, {0: STOPPED_CODE, 1: STOPPED_CODE}, None) == Ending(STOPPED)


def test_a_rank_that_refuses_gives_its_reason_over_the_failures_that_follow(attempt: AttemptDir) -> None:
    give(attempt, 2, "batch_size=7 is no multiple of lanes=48.")
    codes = {0: 1, 1: -signal.SIGKILL, 2: 2, 3: 0}
    assert of_ranks(attempt, codes, 2) == Ending(REFUSED, "batch_size=7 is no multiple of lanes=48.")


def test_a_rank_that_refuses_without_words_is_still_a_refusal(attempt: AttemptDir) -> None:
    assert of_ranks(attempt, {0: 2, 1: 1}, 1).outcome == REFUSED


def test_a_failure_names_the_rank_that_failed_first_its_last_words_and_its_log(attempt: AttemptDir) -> None:
    log = attempt.log("rank_00001")
    log.write_text("Traceback ...\n  line\nRuntimeError: out of luck\n\n")
    attempt.log("rank_00000").write_text("RuntimeError: connection closed by peer\n")
    found = of_ranks(attempt, {0: 1, 1: 1}, 1)
    assert found.outcome == FAILED
    assert found.reason == f"Rank 1 ended with exit code 1: RuntimeError: out of luck\n  Its log: {log}"


def test_a_killed_rank_is_reported_with_its_signal(attempt: AttemptDir) -> None:
    attempt.log("rank_00000").write_text("step 5\n")
    found = of_ranks(attempt, {0: -signal.SIGKILL, 1: 1}, 0)
    assert found.reason.startswith("Rank 0 was ended by SIGKILL\n")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (1, "ended with exit code 1"),
        (137, "ended with exit code 137"),
        (-9, "was ended by SIGKILL"),
        (-11, "was ended by SIGSEGV"),
        (-35, "was ended by signal 35"),
    ],
)
def test_exit_codes_in_words(code: int, words: str) -> None:
    assert describe(code) == words


def test_last_words_are_the_last_line_that_says_something(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"one\n  two \xff\n\n \n")
    assert last_words(log, 1) == ": two \N{REPLACEMENT CHARACTER}"


def test_a_rank_that_was_killed_or_wrote_nothing_has_no_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_words(log, 1) == ""
    log.write_text("\n")
    assert last_words(log, 1) == ""
    log.write_text("step 5\n")
    assert last_words(log, -9) == ""


def test_the_worst_is_a_refusal_then_a_failure_then_a_stop() -> None:
    end, stop, fail, refuse = Ending(FINISHED), Ending(STOPPED), Ending(FAILED, "f"), Ending(REFUSED, "r")
    assert worst([]) == end
    assert worst([end, stop, end]) == stop
    assert worst([stop, fail, end]) == fail
    assert worst([fail, refuse, stop]) == refuse


def test_of_equals_the_one_with_a_reason_counts() -> None:
    assert worst([Ending(FAILED), Ending(FAILED, "why"), Ending(FAILED)]) == Ending(FAILED, "why")


def test_an_ending_is_read_as_it_was_written(tmp_path: Path) -> None:
    ending = Ending(FAILED, "two\nlines")
    ending.write(tmp_path / "node.json")
    assert Ending.read(tmp_path / "node.json") == ending
    assert Ending.read(tmp_path / "other.json") is None
    assert [path.name for path in tmp_path.iterdir()] == ["node.json"]


def test_an_attempt_is_what_its_nodes_report(attempt: AttemptDir) -> None:
    Ending(STOPPED).write(attempt.node(0))
    Ending(FAILED, "Rank 3 was ended by SIGKILL").write(attempt.node(1))
    assert of_attempt(attempt, 2, 1, [0, 1], log_of) == Ending(FAILED, "Rank 3 was ended by SIGKILL")


@pytest.mark.parametrize(("code", "how"), [(-9, "was ended by SIGKILL"), (1, "ended with exit code 1")])
def test_an_agent_without_a_report_is_judged_by_its_exit_code(attempt: AttemptDir, code: int, how: str) -> None:
    Ending(FINISHED).write(attempt.node(0))
    found = of_attempt(attempt, 2, 1, [0, code], log_of)
    assert found.outcome == FAILED
    assert found.reason == f"The agent of node 1 {how}; its log: {log_of(1)}"


def test_the_first_failure_in_time_gets_the_blame(attempt: AttemptDir) -> None:
    Ending(FAILED, "Rank 0: connection closed by peer", time=20.0).write(attempt.node(0))
    Ending(FAILED, "Rank 1 was ended by SIGKILL", time=10.0).write(attempt.node(1))
    assert of_attempt(attempt, 3, 1, [1, 1, -9], log_of).reason == "Rank 1 was ended by SIGKILL"


@pytest.mark.parametrize("code", [0, None])
def test_a_report_that_is_missing_for_no_reason_is_a_failure(attempt: AttemptDir, code: int | None) -> None:
    found = of_attempt(attempt, 1, 1, [code], log_of)
    assert found.outcome == FAILED
    assert "node 0 left no report" in found.reason


def test_an_agent_that_refused_but_could_not_write_is_judged_by_its_own_ranks_reasons(attempt: AttemptDir) -> None:
    Ending(FAILED).write(attempt.node(0))
    for rank in range(4):
        attempt.reserve_reason(rank)
    give(attempt, 1, "not of this node")
    give(attempt, 3, "The disk is full.")
    assert of_attempt(attempt, 2, 2, [1, 2], log_of) == Ending(REFUSED, "The disk is full.")


def test_a_refusal_without_any_written_reason_is_still_a_refusal(attempt: AttemptDir) -> None:
    assert of_attempt(attempt, 1, 1, [2], log_of).outcome == REFUSED


def test_every_outcome_has_an_exit_code_of_the_agent() -> None:
    assert CODE_OF_OUTCOME == {FINISHED: 0, STOPPED: 0, REFUSED: 2, FAILED: 1}
