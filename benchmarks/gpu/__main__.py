"""Measure the transformers engine on one GPU: python -m benchmarks.gpu [--tiny] [--out FOLDER].

Needs PyTorch, Transformers and 80 GB of GPU memory, and no network; `make gpu-bundle` collects the project for such a
machine. Made for less than eight minutes: no section starts after seven and a half. Figures are printed and saved after
each section, as gpu.json and gpu.md. The exit code is 1 if a section fails or measures what must not be; the others run
all the same.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.gpu import generation, loading, memory, scoring
from benchmarks.gpu.bench import Bench, Row, Rows, Unexpected
from benchmarks.gpu.device import device_name, free
from benchmarks.gpu.models import FULL, TINY
from rlt_data.libraries import quiet_bars

#: The sections, in the order in which they run; those that need the model without the engine come first.
SECTIONS: dict[str, Callable[[Bench], Rows]] = {
    "matmul": scoring.matmul,
    "plain scoring": scoring.plain_scoring,
    "plain generation": generation.plain_generation,
    "head check": loading.head_check,
    "loading": loading.loading,
    "scoring": scoring.scoring,
    "generation": generation.generation,
    "batch sizes": generation.batch_sizes,
    "sliding windows": scoring.sliding_windows,
    "dtypes": scoring.dtypes,
    "memory of scoring": memory.memory_of_scoring,
    "memory of generation": memory.memory_of_generation,
}

#: Seconds after the start from which no further section begins.
TIME_LIMIT = 450


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny models on the CPU, in seconds")
    parser.add_argument("--out", type=Path, default=Path(), metavar="FOLDER", help="folder for gpu.json and gpu.md")
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA GPU; --tiny runs on the CPU")
    device = torch.device("cpu" if options.tiny else "cuda:0")  # setting a memory limit needs the index
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "command": "python -m benchmarks.gpu" + " --tiny" * options.tiny,
        "device": device_name(device),
        "versions": {"python": platform.python_version()}
        | {module.__name__: module.__version__ for module in (torch, transformers)},
        "sections": {},
    }
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, quiet_bars():
        bench = Bench(TINY if options.tiny else FULL, device, Path(folder))
        for section, measure in SECTIONS.items():
            elapsed = time.monotonic() - start
            if elapsed > TIME_LIMIT:
                result: dict[str, Any] = {
                    "skipped": f"{elapsed:.0f} s had passed; no section starts after {TIME_LIMIT} s"
                }
            else:
                result = _run(bench, measure)
            results["sections"][section] = result
            print(_section_text(section, measure, result), flush=True)
            _save(options.out, results)
    failed = [section for section, result in results["sections"].items() if "failed" in result]
    print(f"{time.monotonic() - start:.0f} s, failed: {', '.join(failed) or 'nothing'}; saved in {options.out}")
    return 1 if failed else 0


def _run(bench: Bench, measure: Callable[[Bench], Rows]) -> dict[str, Any]:
    """Run a section, and return its rows, its seconds, and why it failed, if it did."""
    rows: list[Row] = []
    result: dict[str, Any] = {"rows": rows}
    start = time.monotonic()
    try:
        for row in measure(bench):  # rows before a failure are kept
            rows.append(row)
    except Unexpected as error:
        result["failed"] = str(error)
    except Exception as error:  # noqa: BLE001 - the other sections run all the same
        traceback.print_exc()
        result["failed"] = " ".join(f"{type(error).__name__}: {error}".split())
    free(bench.device)
    result["seconds"] = round(time.monotonic() - start, 1)
    return result


def _save(folder: Path, results: dict[str, Any]) -> None:
    (folder / "gpu.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    versions = ", ".join(f"{package} {version}" for package, version in results["versions"].items())
    text = f"# The transformers engine on one GPU\n\n`{results['command']}` on {results['device']}; {versions}.\n"
    if results["device"] == "CPU":
        text += "\nTiny models, whose speed says nothing. Memory is not measured on a CPU; a model that refuses large\n"
        text += "forward passes stands in for a full GPU, so peaks and leaks of GPU memory are not shown.\n"
    sections = (_section_text(section, SECTIONS[section], result) for section, result in results["sections"].items())
    (folder / "gpu.md").write_text("\n".join([text, *sections]), encoding="utf-8")


def _section_text(section: str, measure: Callable[[Bench], Rows], result: dict[str, Any]) -> str:
    """Return a section's heading, description and table in Markdown."""
    lines = [f"## {section.capitalize()}", "", (measure.__doc__ or "").partition("\n")[0], ""]
    if rows := result.get("rows"):
        columns = list(dict.fromkeys(column for row in rows for column in row))
        lines += [_line(columns), _line(["---"] * len(columns))]
        lines += [_line([row.get(column) for column in columns]) for row in rows]
        lines.append("")
    lines += [f"**{word.capitalize()}:** {result[word]}\n" for word in ("failed", "skipped") if word in result]
    return "\n".join(lines)


def _line(cells: Sequence[Any]) -> str:
    texts = ("" if cell is None else f"{cell:,}" if isinstance(cell, int | float) else str(cell) for cell in cells)
    return f"| {' | '.join(texts)} |"


if __name__ == "__main__":
    sys.exit(main())
