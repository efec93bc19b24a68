"""Installing the tests' packages starts no service, and leaves the machine's own policy for services as it was."""

import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent / "packages.sh"
OWN = "#!/bin/sh\nexit 104  # the administrator's\n"

pytestmark = pytest.mark.skipif(not Path("/etc/debian_version").is_file(), reason="the script does nothing elsewhere")


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """Where the policy lies, instead of in /usr/sbin; it is missing."""
    return tmp_path / "policy-rc.d"


def installed(policy: Path, apt: str) -> subprocess.CompletedProcess[str]:
    """What the script does as root on a machine that has none of the programs, with this script for `apt-get`."""
    programs = policy.parent / "bin"
    programs.mkdir()
    for name in ("sh", "chmod", "rm", "cat", "cp", "kill"):
        (programs / name).symlink_to(str(shutil.which(name)))
    for name, text in (("id", "echo 0"), ("apt-get", apt)):
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(stat.S_IRWXU)
    environment = {"PATH": str(programs), "DIST_SSL_POLICY": str(policy), "SEEN": str(policy.parent / "seen")}
    defaults = [str(shutil.which("env")), "--default-signal"]  # a shell sets no trap for what was ignored at its start
    command = [*defaults, str(programs / "sh"), str(SCRIPT)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


LOOKS = 'cp "$DIST_SSL_POLICY" "$SEEN"'


@pytest.mark.parametrize("apt", [LOOKS, f"{LOOKS}; exit 100"])
def test_no_service_starts_meanwhile_and_nothing_stays(policy: Path, apt: str) -> None:
    done = installed(policy, apt)
    assert done.returncode == 0, done.stderr
    assert "installing prometheus" in done.stdout
    assert ("they could not be installed" in done.stdout) == ("100" in apt)
    seen = policy.parent / "seen"
    assert subprocess.run(["sh", seen], check=False).returncode == 101
    assert not policy.exists()


@pytest.mark.parametrize("apt", [LOOKS, f"{LOOKS}; exit 100", f"{LOOKS}; kill -TERM $PPID"])
def test_a_policy_of_the_machines_own_stays(policy: Path, apt: str) -> None:
    policy.write_text(OWN)
    installed(policy, apt)
    assert (policy.parent / "seen").read_text() == policy.read_text() == OWN


def test_a_link_in_its_place_is_left_alone(policy: Path) -> None:
    policy.symlink_to(policy.parent / "nowhere")
    installed(policy, "exit 0")
    assert policy.is_symlink()
    assert not policy.exists()


@pytest.fixture
def ignored() -> Iterator[None]:
    """Signals as `nohup` and a shell's `&` leave them to what they start."""
    names = (signal.SIGHUP, signal.SIGINT)
    before = [signal.signal(name, signal.SIG_IGN) for name in names]
    yield
    for name, handler in zip(names, before, strict=True):
        signal.signal(name, handler)


@pytest.mark.usefixtures("ignored")
@pytest.mark.parametrize("name", ["INT", "TERM", "HUP"])
def test_an_interrupt_leaves_no_policy_behind(policy: Path, name: str) -> None:
    done = installed(policy, f"{LOOKS}; kill -{name} $PPID")
    assert (policy.parent / "seen").exists()
    assert done.returncode == 128 + signal.Signals[f"SIG{name}"]
    assert not policy.exists()


def test_the_policy_is_that_of_debian_unless_a_test_says_otherwise() -> None:
    assert "${DIST_SSL_POLICY:-/usr/sbin/policy-rc.d}" in SCRIPT.read_text()
