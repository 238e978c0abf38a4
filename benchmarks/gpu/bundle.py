"""Collect the project for a machine with a GPU, PyTorch, Transformers and no network, in build/gpu.

    python -m benchmarks.gpu.bundle [--python 3.12]

The folder holds the engines, this benchmark and six unpacked wheels for x86-64 Linux and the machine's Python. Copy it
there and run the command that this one prints.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "gpu"
#: What the engine imports beyond the dependencies of PyTorch and Transformers; a test runs the bundle without others.
PACKAGES = ("annotated-types", "pydantic", "pydantic_core", "typing-inspection", "typing_extensions", "xxhash")
MEGABYTES = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="3.12", metavar="VERSION", help="the machine's Python; default: 3.12")
    version = parser.parse_args().python
    shutil.rmtree(FOLDER, ignore_errors=True)
    copy_project(FOLDER)
    add_wheels(FOLDER, version)
    megabytes = sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) / 1e6
    if megabytes > MEGABYTES:
        sys.exit(f"error: {FOLDER} has {megabytes:.0f} MB; the limit is {MEGABYTES} MB")
    print(f"{FOLDER}: {megabytes:.1f} MB. Copy it to the machine, and run in the copy:")
    print("    python3 -m benchmarks.gpu --out results")


def copy_project(folder: Path) -> None:
    """Copy the package without command line, recipes and models, and this benchmark."""
    ignore = shutil.ignore_patterns("cli", "recipes", "nano", "__pycache__")
    shutil.copytree(ROOT / "rlt_data", folder / "rlt_data", ignore=ignore)
    shutil.copytree(ROOT / "benchmarks" / "gpu", folder / "benchmarks" / "gpu", ignore=ignore)
    for module in ("__init__.py", "operations.py"):
        shutil.copy(ROOT / "benchmarks" / module, folder / "benchmarks")


def add_wheels(folder: Path, python: str) -> None:
    """Download the wheels of :data:`PACKAGES` at the tested versions, and unpack them."""
    platforms = [f"--platform=manylinux{tag}_x86_64" for tag in ("_2_28", "_2_17", "2014")]
    with tempfile.TemporaryDirectory() as wheels:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += [f"--python-version={python}", "--implementation=cp", *platforms]
        command += ["--constraint", str(ROOT / "constraints" / "core.txt"), "--dest", wheels, *PACKAGES]
        if subprocess.run(command, check=False).returncode:
            sys.exit(f"error: pip could not download {', '.join(PACKAGES)} for Python {python}")
        for wheel in Path(wheels).glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(folder)


if __name__ == "__main__":
    main()
