"""One launcher of a machine trains a run at a time; a lock that nobody can release refuses nobody."""

import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dist_ssl.errors import ConfigError
from launch.run_dir import PROJECT
from launch.run_lock import NAME, held, is_held

HOLD = """
import sys, time
from pathlib import Path
from launch.run_lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_launcher_is_refused_until_the_first_is_gone_however_it_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"trained already, by process {first.pid} of") as caught, held(tmp_path):
            pass
        assert f"kill -TERM {first.pid}" in caught.value.remedy
        first.kill()
    with held(tmp_path):
        assert (tmp_path / NAME).read_text().split()[1] == str(os.getpid())


def test_a_lock_of_another_machine_refuses_nobody(tmp_path: Path) -> None:
    with (tmp_path / NAME).open("w+") as other:
        other.write("another-machine 17\n")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_EX)
        with held(tmp_path):
            pass


def test_a_folder_that_cannot_be_locked_refuses_nobody(tmp_path: Path) -> None:
    with held(tmp_path / "missing"):
        pass


def test_a_link_in_the_place_of_the_lock_empties_nothing(tmp_path: Path) -> None:
    canary = tmp_path / "thesis"
    canary.write_text("years of work")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / NAME).symlink_to(canary)
    with held(tmp_path / "run"):
        pass
    assert canary.read_text() == "years of work"


def test_a_lock_that_is_a_pipe_or_endless_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / NAME)
    assert is_held(tmp_path) is None
    (tmp_path / NAME).unlink()
    (tmp_path / NAME).symlink_to("/dev/zero")
    assert is_held(tmp_path) is None


def test_the_process_that_a_message_names_is_a_number(tmp_path: Path) -> None:
    with (tmp_path / NAME).open("w+") as other:
        other.write(f"{socket.gethostname()} 1;evil\n")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_EX)
        with held(tmp_path):
            pass
