"""`make setup`: which Python it takes, and what it says about what is missing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = ("awk", "cut", "df", "dirname", "grep", "mkdir", "sh", "tail", "touch", "uname")

#: An interpreter that claims a version, may lack ensurepip, and whose virtual environments hold a fake pip.
FAKE_PYTHON = """#!/bin/sh
if [ "$1" = --version ]; then echo "Python {version}"; exit; fi
if [ "$1" = -m ]; then
    mkdir -p "$4/bin"
    printf '#!/bin/sh\\n[ "$1" = -c ] && exit\\necho "$*" >>"%s/calls"\\n%s\\n' "$4" "$FAKE_PIP" >"$4/bin/python"
    exec "{chmod}" +x "$4/bin/python"
fi
exec "{python}" -c 'import sys
sys.version_info = tuple(map(int, "{version}".split("."))) + ("final", 0)
if not {venv}:
    sys.modules["ensurepip"] = None
exec(sys.argv[1])' "$2"
"""


class Machine:
    """A PATH with a few tools and the interpreters that a test adds."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool) or pytest.skip(f"no {tool}"))
        self.venv = folder / "venv"
        self.command("df", "printf 'Filesystem 1024-blocks Used Available\\ndisk 0 0 90000000 0 disk\\n'")

    def command(self, name: str, script: str) -> None:
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(script if script.startswith("#!") else f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    def python(self, name: str, version: str, *, venv: bool = True) -> None:
        chmod = shutil.which("chmod")
        self.command(name, FAKE_PYTHON.format(version=version, venv=venv, python=sys.executable, chmod=chmod))

    def setup(self, **variables: str) -> subprocess.CompletedProcess[str]:
        command = ["sh", ROOT / "scripts" / "setup.sh", self.venv, "constraints/dev.txt", "-e", ".[dev]"]
        environment = {"PATH": str(self.bin), "FAKE_PIP": "", **variables}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)

    def refusal(self, **variables: str) -> str:
        """Run setup, and return the single line that says why it failed."""
        done = self.setup(**variables)
        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        return line


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def installed_with(machine: Machine, **variables: str) -> str:
    """Set up, and return the version of the Python that was taken."""
    done = machine.setup(**variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("Python ")[1].split(",")[0]


@pytest.mark.parametrize("name", ["python3.11", "python3.12", "python3.13", "python3", "python"])
def test_any_fitting_python_is_found(machine: Machine, name: str) -> None:
    machine.python(name, "3.12.4")
    assert installed_with(machine) == "3.12.4"


def test_unfit_and_broken_interpreters_are_passed_over(machine: Machine) -> None:
    machine.command("python3.13", "exit 127")  # a shim of pyenv for a version that is not active
    machine.python("python3.12", "3.12.1", venv=False)
    machine.python("python3", "3.14.0")
    machine.python("python", "3.11.9")
    assert installed_with(machine) == "3.11.9"


def test_a_named_python_is_taken_or_refused(machine: Machine) -> None:
    machine.python("python3.13", "3.13.1")
    machine.python("mine", "3.11.2")
    machine.python("old", "3.10.2")
    assert "3.10.2" in machine.refusal(PYTHON="old")
    assert "nosuch" in machine.refusal(PYTHON="nosuch")
    assert installed_with(machine, PYTHON="mine") == "3.11.2"


def test_a_missing_python_is_one_line_that_names_those_found(machine: Machine) -> None:
    machine.python("python3", "3.10.12")
    assert "python3 is 3.10.12" in machine.refusal()


def test_a_missing_venv_module_is_one_line_that_names_its_package(machine: Machine) -> None:
    machine.python("python3", "3.12.3", venv=False)
    line = machine.refusal()
    assert "ensurepip" in line and "python3.12-venv" in line


@pytest.mark.parametrize(("torch_index", "needed"), [("", 9), ("https://example.org/cpu", 4)])
def test_a_full_disk_is_one_line_with_both_sizes(machine: Machine, torch_index: str, needed: int) -> None:
    machine.python("python3", "3.12.3")
    machine.command("uname", "echo Linux")
    machine.command("df", "printf 'Filesystem 1024-blocks Used Available\\ndisk 0 0 3900000 0 disk\\n'")
    line = machine.refusal(TORCH_INDEX=torch_index)
    assert f"{needed} GB" in line and "3 GB free" in line
    assert not (machine.venv / "bin").exists()


def test_a_failing_pip_is_one_line_with_its_reason_and_log(machine: Machine) -> None:
    machine.python("python3", "3.12.3")
    fake = "echo Collecting torch; echo ERROR: No matching distribution found for torch >&2; exit 1"
    line = machine.refusal(FAKE_PIP=fake)
    assert "No matching distribution found for torch" in line and str(machine.venv / "setup.log") in line


def test_an_unwritable_folder_is_one_line(machine: Machine, tmp_path: Path) -> None:
    machine.python("python3", "3.12.3")
    (tmp_path / "file").write_text("")
    machine.venv = tmp_path / "file" / "venv"
    assert str(machine.venv) in machine.refusal()


def test_only_wheels_are_installed_and_only_at_the_tested_versions(machine: Machine) -> None:
    machine.python("python3", "3.12.3")
    assert len(machine.setup(TORCH_INDEX="https://example.org/cpu").stdout.splitlines()) == 1
    calls = (machine.venv / "calls").read_text().splitlines()
    installs = [call for call in calls if "--upgrade pip" not in call]
    assert all("--only-binary :all: -c constraints/dev.txt" in call for call in installs)
    torch, project = installs
    assert "--index-url https://example.org/cpu torch" in torch and project.endswith("-e .[dev]")


def test_an_environment_that_runs_is_updated_with_its_own_python(machine: Machine) -> None:
    machine.python("python3.11", "3.11.9")
    assert installed_with(machine) == "3.11.9"
    machine.python("python3.13", "3.13.1")
    assert "3.13" not in machine.setup().stdout
    assert installed_with(machine, PYTHON="python3.13") == "3.13.1"


def test_make_passes_its_variables_on(tmp_path: Path) -> None:
    commands = subprocess.run(
        ["make", "--dry-run", "test-core", "CORE_VENV=elsewhere", "PYTHON=a python", "TORCH_INDEX=url"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "PYTHON='a python' TORCH_INDEX='url' sh scripts/setup.sh elsewhere constraints/core.txt ." in commands
