"""The exit code of a worker says whether its run may be resumed by itself: what was lost may come back."""

import pytest

from dist_ssl.errors import (
    ConfigError,
    DataError,
    DisagreementError,
    LostPeerError,
    ServerAwayError,
    TrainingError,
    UserError,
)
from launch.ending import DISAGREED_CODE, DIVERGED_CODE, LOST_CODE
from launch.worker import code_of


@pytest.mark.parametrize(
    "error",
    [
        ServerAwayError("a", "b"),
        LostPeerError("a", "b"),
        ConnectionResetError("peer"),
        RuntimeError("[gloo/transport/tcp/pair.cc:598] Connection closed by peer [127.0.0.1]:4711"),
        RuntimeError("[gloo/transport/tcp/buffer.cc:72] Timed out waiting 1800000ms for send operation to complete"),
        RuntimeError("NCCL error: ncclRemoteError: A call failed possibly due to a network error"),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
        RuntimeError("GPU is lost. Reboot the system to recover this GPU"),
    ],
    ids=lambda error: str(error)[:40],
)
def test_what_is_lost_may_come_back(error: Exception) -> None:
    assert code_of(error) == LOST_CODE


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TrainingError("a", "b"), DIVERGED_CODE),
        (DisagreementError("a", "b"), DISAGREED_CODE),
        (ConfigError("a", "b"), 2),
        (DataError("a", "b"), 2),
        (UserError("a", "b"), 2),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), 1),
        (KeyError("x"), 1),
    ],
)
def test_a_fault_of_the_run_itself_does_not(error: Exception, code: int) -> None:
    assert code_of(error) == code
