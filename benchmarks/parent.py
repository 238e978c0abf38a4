"""CPU time per token of the parent process of generation and scoring, with long traces and an instant engine.

    python -m benchmarks.parent [--traces 256] [--rounds 3] [--tokenizers TEACHER STUDENT] [--against CHECKOUT]

Traces have about 8,000 tokens of text that does not repeat. Three cases:

- canonical: teacher and student have the same tokenizer, and the teacher samples the tokens that it gives the text
- one token split: one token in the middle of each trace is sampled as two
- across tokenizers: the student has another tokenizer

CPU microseconds per token of the teacher cover everything from the first block to the last row, all threads and
processes together, and exclude loading. A folder of --tokenizers needs only a tokenizer. --against measures another
checkout of rlt-data in turn with this one. Each measurement runs in its own process, with one thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from safetensors.numpy import save_file
from transformers import LlamaConfig

from benchmarks.overhead import PER_QUESTION, InstantEngine, write_questions
from benchmarks.process import measure
from benchmarks.report import print_table, save
from rlt_data.engines import find_checkpoint, open_tokenizer
from rlt_data.settings import GenerateSettings, ModelSettings, ScoreSettings

CASES = {"canonical": False, "one token split": True, "across tokenizers": False}
#: Different traces; more would only take longer to make.
TEXTS = 64
TOKENS = 8_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokenizers", nargs=2, default=["gemma-3-270m", "nano-student"])
    parser.add_argument("--against", type=Path)
    parser.add_argument("--work", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        _work(*arguments.work)
        return
    root = Path(__file__).parent.parent
    checkouts = {"this": root} | ({"other": arguments.against.resolve()} if arguments.against else {})
    found: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        teacher, student = (_model(name, Path(temporary)) for name in arguments.tokenizers)
        for _, case, (name, checkout) in itertools.product(range(arguments.rounds), CASES, checkouts.items()):
            folder = Path(temporary) / "run"
            folder.mkdir()
            reader = student if case == "across tokenizers" else teacher
            for step in ("generate", "score"):
                command = [sys.executable, __file__, "--work", step, case, str(arguments.traces), teacher, reader]
                # rlt_data of the checkout, and everything else from here.
                package = Path(temporary) / name / "rlt_data"
                package.parent.mkdir(exist_ok=True)
                if not package.exists():
                    package.symlink_to(checkout / "rlt_data")
                environment = {"PYTHONPATH": f"{package.parent}{os.pathsep}{root}", "RLT_DATA_WORK": str(folder)}
                with mock.patch.dict(os.environ, environment):
                    megabytes = measure(command, folder, threads=1).megabytes
                took = json.loads((folder / "took.json").read_text()) | {"peak MB": megabytes}
                found.setdefault((step, case, name), []).append(took)
                print(f"{step}, {case}, {name}: {took['CPU us/token']:.2f} CPU microseconds a token", flush=True)
            shutil.rmtree(folder)
    rows = []
    for (step, case, name), rounds in sorted(found.items()):
        medians = {what: statistics.median(took[what] for took in rounds) for what in rounds[0]}
        rows.append({"step": step, "traces": case, "checkout": name} | medians)
    print_table(rows)
    save("parent", {"settings": {"traces": arguments.traces, "rounds": arguments.rounds}, "rows": rows})


def _model(name: str, temporary: Path) -> str:
    """Return a model's name; for a folder with only a tokenizer, a folder with a model of one weight."""
    if not (Path(name) / "tokenizer.json").exists() or (Path(name) / "config.json").exists():
        return name
    folder = temporary / f"model-{len(list(temporary.iterdir()))}"
    shutil.copytree(name, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    ids = [*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])]
    LlamaConfig(vocab_size=1 + max(ids), max_position_embeddings=2**17).save_pretrained(folder)
    save_file({"weight": np.zeros(1, np.float32)}, folder / "model.safetensors")
    return str(folder)


def _work(step: str, case: str, traces: str, teacher: str, student: str) -> None:
    """Run a step in this process, and write its CPU time to a file."""
    from rlt_data.steps.generate import generate
    from rlt_data.steps.resumable import ResumableTable
    from rlt_data.steps.score import score

    folder = Path(os.environ["RLT_DATA_WORK"])
    run, started = str(folder / "run"), [0.0]
    fill: Callable[..., Any] = ResumableTable.fill

    def timed(*arguments: Any, **options: Any) -> Any:
        started[0] = _cpu_seconds()
        return fill(*arguments, **options)

    samples = _samples(teacher, split=CASES[case]) if step == "generate" else [("", np.zeros(0, np.int32))]
    with (
        mock.patch("rlt_data.engines.transformers.TransformersEngine.load", return_value=InstantEngine(samples)),
        mock.patch.object(ResumableTable, "fill", timed),
    ):
        if step == "generate":
            questions = write_questions(folder / "questions.jsonl", int(traces) // PER_QUESTION)
            summary = generate(
                GenerateSettings(teacher=teacher, input=str(questions), out=run, n=PER_QUESTION, format="rlt")
            )
            (folder / "tokens").write_text(str(summary.tokens))
        else:
            summary = score(ScoreSettings(student=student, input=run))
    assert summary.new == int(traces) // PER_QUESTION * PER_QUESTION, summary
    tokens = int((folder / "tokens").read_text())
    took = {"CPU us/token": _cpu_seconds() - started[0], "wall us/token": summary.seconds}
    (folder / "took.json").write_text(json.dumps({what: 1e6 * value / tokens for what, value in took.items()}))


def _cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


def _samples(teacher: str, *, split: bool) -> list[tuple[str, Any]]:
    """Make traces and their tokens, words with the frequencies of this project's documentation, and numbers."""
    documents = sorted((Path(__file__).parent.parent / "docs").glob("*.md"))
    words = re.findall(r"\S+\s+", "".join(document.read_text(encoding="utf-8") for document in documents))
    tokenizer, _ = open_tokenizer(find_checkpoint(teacher, tokenizer_only=True), ModelSettings())
    random_numbers = random.Random(0)
    samples = []
    for _ in range(TEXTS):
        text = " ".join(_words(words, random_numbers)) + "<|end_of_explanation|>"
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        samples.append((text, np.asarray(_split_one(tokenizer, ids) if split else ids, np.int32)))
    return samples


def _words(words: Sequence[str], random_numbers: random.Random) -> list[str]:
    return [
        str(random_numbers.randrange(10**5))
        if random_numbers.random() < 0.1
        else random_numbers.choice(words).rstrip(" ")
        for _ in range(TOKENS * 5 // 9)
    ]


def _split_one(tokenizer: Any, ids: list[int]) -> list[int]:
    """Replace one token in the middle by two."""
    vocabulary = tokenizer.get_vocab()
    for index in range(len(ids) // 2, len(ids)):
        piece = tokenizer.convert_ids_to_tokens(ids[index])
        for end in range(1, len(piece)):
            if piece[:end] in vocabulary and piece[end:] in vocabulary:
                return [*ids[:index], vocabulary[piece[:end]], vocabulary[piece[end:]], *ids[index + 1 :]]
    raise AssertionError("no token can be split")


if __name__ == "__main__":
    main()
