"""Overhead per trace: microseconds and peak memory with an engine that responds immediately.

    python -m benchmarks.overhead [--traces 10000 1000000] [--others 10000 50000]

`generate` and `score` do all their work with 16 traces per question: prompts, tokenisation, seeds, rows, journal
and merging. The engine returns the same 100 tokens for every sample and zero for every log-prob. Microseconds exclude
the start of the process, peak memory includes it. Each measurement runs in its own process. `benchmarks.parent`
measures long traces.

For comparison, distilabel 1.5.3 and bespokelabs-curator generate as many texts, each in its own environment in
--environments (kept for later runs; skipped with a message if it cannot be installed). distilabel's model is a class
that returns the text immediately, like ours. curator supports no such model, so it uses a local server that responds
immediately. rlt-data's server engine uses the same server, and both send one request per trace.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.process import Measured, measure
from benchmarks.report import print_table, save
from rlt_data.engines import (
    Failure,
    PromptRequest,
    Sample,
    Sampling,
    SequenceBlock,
    SequenceLogprobs,
    find_checkpoint,
    open_tokenizer,
)
from rlt_data.engines.protocol import Ints
from rlt_data.engines.watchdog import Heartbeat
from rlt_data.settings import GenerateSettings, ModelSettings, ScoreSettings

PER_QUESTION = 16
MODEL = "gemma-3-270m"
OTHERS = Path(__file__).parent / "others"
PACKAGES = {
    "distilabel": ["distilabel==1.5.3", "requests"],  # distilabel imports requests without requiring it
    "curator": ["bespokelabs-curator"],
}
SENTENCE = "We look at what is asked, write down what we know, and take one small step after the other. "
TEXT = SENTENCE * 5
END = "<|end_of_explanation|>"


class InstantEngine:
    """Engine that responds immediately, with one of these texts and its tokens after the other."""

    context_length = 2**20

    def __init__(self, samples: Sequence[tuple[str, Ints]]) -> None:
        self.heartbeat = Heartbeat()
        self._samples = itertools.cycle(samples)

    def generate(self, blocks: Iterable[Sequence[PromptRequest]], sampling: Sampling) -> Iterator[Sample | Failure]:
        for block in blocks:
            for request in block:
                tail = np.zeros(request.tail, np.float32)
                for sample in request.samples:
                    text, ids = next(self._samples)
                    zeros = np.zeros(len(ids), np.float32)
                    yield Sample(sample.key, text, ids, zeros, tail, "stop", len(request.ids), len(ids))

    def logprobs(self, blocks: Iterable[SequenceBlock], temperature: float) -> Iterator[SequenceLogprobs | Failure]:
        for block in blocks:
            for group in block:
                for request in group:
                    yield SequenceLogprobs(request.key, np.zeros(len(request.positions), np.float32))

    def log_tail(self) -> str:
        return ""

    def close(self) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--others", type=int, nargs="*", default=[10_000, 50_000])
    parser.add_argument("--environments", type=Path, default=Path(".venv-others"))
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        step, traces, folder = arguments.work
        _work(step, int(traces), Path(folder))
        return
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for traces in arguments.traces:
            folder = Path(temporary) / str(traces)
            folder.mkdir()
            for step in ("generate", "score"):
                work = ["--work", step, str(traces), str(folder)]
                measured = measure([sys.executable, "-m", "benchmarks.overhead", *work], folder, threads=1)
                rows.append(_row(f"rlt-data {step}", traces, measured, folder))
        rows += _others(arguments.others, arguments.environments, Path(temporary))
    print_table(rows)
    sizes = {name: getattr(arguments, name) for name in ("traces", "others")}
    save("overhead", {"settings": sizes, "rows": rows})


def _row(what: str, traces: int, measured: Measured, folder: Path) -> dict[str, Any]:
    microseconds = 1e6 * json.loads((folder / "seconds.json").read_text()) / traces
    print(f"{what}: {traces:,} traces, {microseconds:.1f} microseconds a trace", flush=True)
    return {"what": what, "traces": traces, "microseconds a trace": microseconds, "peak MB": measured.megabytes}


def _work(step: str, traces: int, folder: Path) -> None:
    """Run a step in this process, and write its seconds to a file."""
    from rlt_data.steps.generate import generate
    from rlt_data.steps.score import score

    questions = write_questions(folder / "questions.jsonl", traces // PER_QUESTION)
    run = str(folder / "run")
    tokenizer, _ = open_tokenizer(find_checkpoint(MODEL), ModelSettings())
    ids = np.asarray(tokenizer(TEXT + END, add_special_tokens=False)["input_ids"], np.int32)
    with mock.patch(
        "rlt_data.engines.transformers.TransformersEngine.load", return_value=InstantEngine([(TEXT + END, ids)])
    ):
        if step == "generate":
            summary = generate(
                GenerateSettings(teacher=MODEL, input=str(questions), out=run, n=PER_QUESTION, format="rlt")
            )
        else:
            summary = score(ScoreSettings(student=MODEL, input=run))
    assert summary.new == traces // PER_QUESTION * PER_QUESTION, summary
    (folder / "seconds.json").write_text(json.dumps(summary.seconds))


def write_questions(path: Path, count: int) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            question = f"A baker makes {number} trays of rolls with 15 rolls on each, and sells 72. How many are left?"
            solution = f"There are {number} * 15 = {number * 15} rolls. After selling 72, {number * 15 - 72} are left."
            file.write(json.dumps({"id": str(number), "question": question, "solution": solution}) + "\n")
    return path


def _others(sizes: Sequence[int], environments: Path, folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    if not sizes:
        return rows
    server = subprocess.Popen(
        [sys.executable, str(OTHERS / "instant_server.py"), TEXT], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout
    url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
    try:
        for traces in sizes:
            questions = write_questions(folder / "questions.jsonl", traces // PER_QUESTION)
            options = [str(questions), str(PER_QUESTION), url, str(folder)]
            for name, packages in PACKAGES.items():
                if python := _environment(environments / name, packages):
                    command = [str(python), str(OTHERS / f"{name}_run.py"), *options]
                    try:
                        rows.append(_row(name, traces, measure(command, folder, threads=1), folder))
                    except RuntimeError:  # its stderr names the reason
                        print(f"skipped: {name} fails")
            command = [sys.executable, str(OTHERS / "rlt_data_run.py"), *options]
            rows.append(_row("rlt-data generate --engine server", traces, measure(command, folder, threads=1), folder))
    finally:
        server.kill()
    return rows


def _environment(folder: Path, packages: Sequence[str]) -> Path | None:
    """Make a virtual environment with packages; return its Python, or None if the installation fails."""
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"installing {', '.join(packages)} into {folder}", flush=True)
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, capture_output=True)
            install = [str(python), "-m", "pip", "install", "--quiet", *packages]
            subprocess.run(install, check=True, capture_output=True, text=True, timeout=900)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            reason = (error.stderr or str(error)).strip().splitlines()[-1]
            print(f"skipped: {', '.join(packages)} cannot be installed: {reason}")
            return None
        (folder / "complete").touch()
    return python


if __name__ == "__main__":
    main()
