"""One launcher of a machine trains a run at a time; a lock that nobody can release refuses nobody."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dist_ssl.errors import ConfigError
from launch.run_dir import PROJECT
from launch.run_lock import NAME, held

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
