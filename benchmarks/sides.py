"""Choose the sides of a comparison on the command line, and start them."""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.worker import ROOT, SideError, Worker
from rlt_data.engines import find_checkpoint

#: Module and class of each side, and the package that it needs.
SIDES = {
    "ours": ("ours.Ours", None),
    "against": ("ours.Ours", None),
    "plain": ("ours.Plain", None),
    "script": ("peers.Script", None),
    "transformers": ("peers.Script", None),
    "lm-eval": ("peers.LmEval", "lm_eval"),
    "vllm": ("peers.Vllm", "vllm"),
    "limit": ("peers.Limit", None),
}


def add_options(parser: argparse.ArgumentParser, known: Sequence[str]) -> None:
    """Add the options that choose the model and the sides."""
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--sides", nargs="+", choices=known[1:], default=known[1:], help="sides besides ours; default: all"
    )
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout of rlt-data")


def chosen(arguments: argparse.Namespace) -> list[str]:
    """Return ours and the requested sides that can run, and say which cannot."""
    sides = []
    for side in ("ours", *arguments.sides):
        package = SIDES[side][1]
        if package and not find_spec(package):
            print(f"{side}: not measured, because {package} is not installed")
        elif side == "against" and not arguments.against:
            print("against: not measured; --against CHECKOUT compares with another checkout of rlt-data")
        else:
            sides.append(side)
    return sides


def start(sides: Sequence[str], arguments: argparse.Namespace, dtype: str, *, use: str) -> dict[str, Worker]:
    """Start the sides in one dtype to ``score`` or to ``generate``, and say which cannot start."""
    folder = str(find_checkpoint(arguments.model).folder)
    workers = {}
    for side in sides:
        name, checkout = SIDES[side][0], arguments.against if side == "against" else ROOT
        options = [use] if side == "vllm" else []
        model = arguments.model if name.startswith("ours.") else folder
        try:
            workers[side] = Worker(name, model, dtype, *options, checkout=checkout)
        except SideError as error:
            print(f"{side}, {dtype}: not measured: {error}")
    return workers


def settings_of(arguments: argparse.Namespace, sides: Sequence[str]) -> dict[str, Any]:
    """Return the settings to save, with the sides that ran and the commit of the other checkout."""
    settings = vars(arguments) | {"sides": sides}
    if arguments.against:
        git = ["git", "-C", str(arguments.against), "rev-parse", "--short", "HEAD"]
        found = subprocess.run(git, capture_output=True, text=True, check=False)
        settings["against"] = found.stdout.strip() or arguments.against.name
    return settings


def peer_packages() -> list[str]:
    """Return the distributions of the peers that are installed."""
    return [metadata.packages_distributions()[name][0] for name in ("vllm", "lm_eval") if find_spec(name)]
