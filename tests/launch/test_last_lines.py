"""The launcher ends with the command that fits: none is advised that would fail in the same way."""

import contextlib
import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from dist_ssl.errors import DataError, DisagreementError, ServerAwayError, TrainingError, UserError
from dist_ssl.runtime.end_names import FAILED, FINISHED, NOT_FINITE, PLANS_DIFFER, REFUSED, STOPPED
from launch.ending import DISAGREED_CODE, DIVERGED_CODE, LOST_CODE, UNREADABLE_CODE, Ending, of_ranks
from launch.last_lines import ENCODER, say_how_it_ended
from launch.lost_signs import GONE
from launch.run_dir import AttemptDir, RunDir
from launch.suspect_nodes import suspect_numbers
from launch.worker import code_of, explained_code, say_why


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    (tmp_path / "a run" / "attempts" / "0001" / "logs").mkdir(parents=True)
    (tmp_path / "a run" / "config.yaml").write_text("data: {source: null}\n")
    return RunDir(tmp_path / "a run")


def said(run: RunDir, ending: Ending, **options: int) -> str:
    console = Console(record=True, soft_wrap=True, file=io.StringIO())
    say_how_it_ended(run, ["nodes=2"], ending, console, **options)
    return console.export_text()


@pytest.mark.parametrize("outcome", [STOPPED, REFUSED, FAILED])
def test_what_has_not_finished_is_resumed(run: RunDir, outcome: str) -> None:
    assert f"\n  Resume with: python launch/slurm.py 'resume={run.folder}' nodes=2\n" in said(
        run, Ending(outcome, "Why.")
    )


def test_an_attempt_that_a_newer_one_took_over_is_not_resumed(run: RunDir) -> None:
    (run.folder / "attempts" / "0002").mkdir()
    assert said(run, Ending(REFUSED, "It is not the newest."), number=1) == "It is not the newest.\n"
    assert "Resume with" in said(run, Ending(REFUSED, "The disk is full."), number=2)


def test_an_accuracy_on_images_that_are_trained_on_is_said_to_be_that(run: RunDir) -> None:
    (run.folder / "status.json").write_text('{"knn_accuracy": 0.5, "queries": 40, "step": 3, "epoch": 1}')
    assert "40 images (95 %: 35.2 to 64.8).\n" in said(run, Ending(FINISHED))
    (run.folder / "config.yaml").write_text("data: {source: null, train: train, val: train}\n")
    assert "35.2 to 64.8), which are trained on: it says nothing of other images.\n" in said(run, Ending(FINISHED))


def test_what_diverged_starts_anew_from_its_last_checkpoint_if_there_is_one(run: RunDir) -> None:
    diverged = Ending(REFUSED, "The loss is nan.", diverged=True)
    assert said(run, diverged) == "The loss is nan.\n  Nothing was saved yet: start a new run.\n"
    (run.folder / "checkpoints" / "step_00000007").mkdir(parents=True)
    fork = f"python launch/slurm.py 'fork={run.folder}@latest' optim.base_lr=..."
    assert said(run, diverged) == f"The loss is nan.\n  Start from its last checkpoint with a lower rate: {fork}\n"


def test_a_rank_that_diverged_says_so_by_its_exit_code(run: RunDir) -> None:
    assert code_of(TrainingError("nan", "")) == DIVERGED_CODE
    assert code_of(UserError("full", "")) == 2
    assert code_of(ValueError("bug")) == 1
    attempt = AttemptDir(run, 1)
    assert of_ranks(attempt, {0: DIVERGED_CODE, 1: DIVERGED_CODE}, 0).diverged
    assert of_ranks(attempt, {0: DIVERGED_CODE}, 0).outcome == REFUSED
    assert not of_ranks(attempt, {0: 2}, 0).diverged


def test_a_run_of_too_many_unreadable_samples_is_not_advised_to_resume(run: RunDir) -> None:
    """A resume finds the same list, and other data is refused: the remedy is a new run."""
    found = of_ranks(AttemptDir(run, 1), {0: UNREADABLE_CODE, 1: UNREADABLE_CODE}, 0)
    assert (found.outcome, found.unreadable, found.diverged) == (REFUSED, True, False)
    assert said(run, replace(found, reason="Too many.")) == "Too many.\n"
    assert not of_ranks(AttemptDir(run, 1), {0: 2}, 0).unreadable


def test_the_rank_whose_gpu_is_gone_is_quoted_though_a_peer_ended_first(run: RunDir) -> None:
    attempt = AttemptDir(run, 1)
    for rank, text in enumerate(["Connection closed by peer", "CUDA error: uncorrectable ECC error encountered"]):
        attempt.log(f"rank_{rank:05d}").parent.mkdir(parents=True, exist_ok=True)
        attempt.log(f"rank_{rank:05d}").write_text(f"{GONE}RuntimeError: {text}\n")
    found = of_ranks(attempt, {0: LOST_CODE, 1: LOST_CODE}, 0)
    assert found.lost
    assert "Rank 1" in found.reason
    assert "uncorrectable ECC" in found.reason
    assert "Rank 0" in of_ranks(attempt, {0: LOST_CODE}, 0).reason


def test_a_server_of_data_cannot_name_a_node_as_one_that_has_lost_its_gpu(run: RunDir) -> None:
    """What it answers is quoted: healthy nodes would be left out of all further attempts."""
    attempt = AttemptDir(run, 1)
    (attempt.folder / "reasons").mkdir(parents=True)
    error = ServerAwayError("https://host/set could not be fetched: BadStatusLine('GPU is lost')", "Resume.")
    assert code_of(error) == LOST_CODE
    for rank in (0, 1):
        attempt.give_reason(rank, str(error))
        of_ranks(attempt, {rank: LOST_CODE}, rank).write(attempt.node(rank))
    assert suspect_numbers(attempt, 2) == []
    assert "Rank 1" not in of_ranks(attempt, {0: LOST_CODE, 1: LOST_CODE}, 0).reason


def test_ranks_that_disagree_say_so_by_their_exit_code_and_are_resumed_once_that_is_put_right(run: RunDir) -> None:
    assert code_of(DisagreementError("plans", "")) == DISAGREED_CODE
    attempt = AttemptDir(run, 1)
    found = of_ranks(attempt, {0: DISAGREED_CODE, 1: DISAGREED_CODE}, 1)
    assert (found.outcome, found.cause, found.diverged) == (REFUSED, PLANS_DIFFER, False)
    assert "Resume with" in said(run, found)
    assert of_ranks(attempt, {0: DIVERGED_CODE}, 0).cause == NOT_FINITE
    assert of_ranks(attempt, {0: 2}, 0).cause == "", "it is another error"


def test_a_finished_run_is_used_or_its_encoder_written_first(run: RunDir) -> None:
    assert "Write it: python launch/export.py 'run=" in said(run, Ending(FINISHED))
    (run.folder / ENCODER).touch()
    text = said(run, Ending(FINISHED))
    assert f"dist_ssl.load_encoder('{run.folder}')" in text
    assert "Next:" not in text, "the data is the user's own"
    (run.folder / "config.yaml").write_text("data: {source: demo}\n")
    assert "Next: your own images (data=folder data.path=...), or a larger encoder" in said(run, Ending(FINISHED))
    assert f"Train longer: python launch/slurm.py 'resume={run.folder}' extend='24 epochs'" in text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionError("Rank 1 has ended: its log says why."), "Something else is gone: ConnectionError: Rank 1 has"),
        (RuntimeError("[gloo] Connection closed by peer"), "Something else is gone: RuntimeError: [gloo] Connection"),
        (OSError(30, "Read-only file system", "metrics"), "The disk is read-only: "),
        (IsADirectoryError(21, "Is a directory", "plan.jsonl"), "plan.jsonl cannot be used: Is a directory."),
    ],
)
def test_what_is_no_error_of_this_code_is_said_without_a_stack_trace(
    error: Exception, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    say_why(error)
    assert capsys.readouterr().err.startswith(said)


def test_an_error_of_this_code_is_logged_with_its_stack_trace(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ValueError("a bug")
    except ValueError as error:
        say_why(error)
    assert "Traceback" in capsys.readouterr().err


CUDA = "\nCUDA kernel errors might be reported at another call.\nFor debugging: BLOCKING=1\nCompile with `X`.\n"


@pytest.mark.parametrize(
    ("problem", "code", "suspects"),
    [("uncorrectable ECC error encountered", LOST_CODE, [1]), ("device-side assert triggered", 1, [])],
)
def test_an_ending_quotes_what_happened_of_a_message_of_several_lines(
    tmp_path: Path, problem: str, code: int, suspects: list[int]
) -> None:
    attempt = RunDir(tmp_path).new_attempt({})
    error = RuntimeError(f"CUDA error: {problem}{CUDA}")
    assert code_of(error) == code
    with attempt.log("rank_00001").open("w") as log, contextlib.redirect_stderr(log):
        say_why(error)
    ending = of_ranks(attempt, {1: code}, 1)
    assert f"RuntimeError: CUDA error: {problem}" in ending.reason
    ending.write(attempt.node(1))
    Ending(FAILED, "Rank 0: Connection closed by peer", lost=True).write(attempt.node(0))
    assert suspect_numbers(attempt, 2) == suspects


def test_a_reason_that_cannot_be_written_is_in_the_log_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def refuse() -> int:
        raise DataError("No shard is there.", "Put them back.")

    monkeypatch.setattr(AttemptDir, "give_reason", full)
    assert explained_code(refuse, RunDir(tmp_path).new_attempt({})) == 2
    assert "No shard is there." in capsys.readouterr().err


def test_no_log_of_a_rank_acts_on_the_terminal_of_whoever_reads_it(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (DataError("\x1b[2Ja", "b"), ConnectionResetError("\x1b[2Ja"), ZeroDivisionError("\x1b[2Ja\u202e")):
        try:
            raise error
        except type(error):
            say_why(error)
    text = capsys.readouterr().err
    assert text.count("\\x1b[2Ja") == 3
    assert "Traceback" in text
    assert all(character.isprintable() or character == "\n" for character in text)
