"""Generation speed of the complete `generate` step relative to its engine alone, in tokens per second.

    python -m benchmarks.generation [--model gemma-3-270m] [--questions 8] [--traces 8] [--max-tokens 48]

The step checks its input, renders and tokenises prompts, writes each finished trace durably, and compacts the table.
Its time excludes loading the model. The engine alone gets the same requests, and its samples are discarded. The two
take turns. Because slow moments of the machine change single rounds by a tenth or more, the benchmark also measures the
share of the step's time spent inside the engine, in the same pass.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from unittest import mock

from benchmarks.report import print_table, save
from rlt_data.engines import Engine, Failure, Model, PromptRequest, Sample, Sampling, open_model
from rlt_data.settings import GenerateSettings
from rlt_data.steps.generate import generate

QUESTIONS = Path(__file__).parent.parent / "recipes" / "demo" / "questions.jsonl"
GOAL = 0.95


class Recorder:
    """Engine wrapper that records requests and the seconds spent inside the engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.inside = 0.0
        self.context_length = engine.context_length
        self.heartbeat = engine.heartbeat
        self.blocks: list[Sequence[PromptRequest]] = []
        self.sampling: Sampling | None = None

    def generate(self, blocks: Iterable[Sequence[PromptRequest]], sampling: Sampling) -> Iterator[Sample | Failure]:
        self.sampling = sampling

        def recorded() -> Iterator[Sequence[PromptRequest]]:
            source = iter(blocks)
            while True:
                start_time = time.perf_counter()
                block = next(source, None)
                self.inside -= time.perf_counter() - start_time  # the step makes the blocks
                if block is None:
                    return
                self.blocks.append(block)
                yield block

        results = self.engine.generate(recorded(), sampling)
        while True:
            start_time = time.perf_counter()
            result = next(results, None)
            self.inside += time.perf_counter() - start_time
            if result is None:
                return
            yield result

    def log_tail(self) -> str:
        return self.engine.log_tail()

    def close(self) -> None:
        """Keep the engine open for the next round."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--traces", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    settings = GenerateSettings(
        input=str(QUESTIONS),
        limit=arguments.questions,
        teacher=arguments.model,
        n=arguments.traces,
        max_tokens=arguments.max_tokens,
    )
    model = open_model(arguments.model, settings)
    engine = model.engine
    recorder = Recorder(engine)
    run_step(model, recorder, settings.model_copy(update={"max_tokens": 2}))  # warm-up
    recorder.blocks.clear()
    rows = []
    for turn in range(arguments.rounds):
        recorder.inside = 0.0
        step_tokens, step_seconds = run_step(model, recorder, settings)
        share = recorder.inside / step_seconds
        blocks, recorder.blocks = recorder.blocks, []
        assert recorder.sampling is not None
        start_time = time.perf_counter()
        samples = list(engine.generate(blocks, recorder.sampling))
        engine_seconds = time.perf_counter() - start_time
        engine_tokens = sum(len(sample.token_ids) for sample in samples if isinstance(sample, Sample))
        assert step_tokens == engine_tokens, (step_tokens, engine_tokens)
        rows.append(
            {
                "round": turn + 1,
                "tokens": step_tokens,
                "step, tokens/s": step_tokens / step_seconds,
                "engine alone, tokens/s": engine_tokens / engine_seconds,
                "ratio": engine_seconds / step_seconds,
                "share inside the engine": share,
            }
        )
    print_table(rows)
    step, alone = (sum(row["tokens"] / row[f"{which}, tokens/s"] for row in rows) for which in ("step", "engine alone"))
    ratios = {
        "median ratio of the rounds": statistics.median(float(row["ratio"]) for row in rows),
        "ratio over all rounds": alone / step,
        "median share inside the engine": statistics.median(float(row["share inside the engine"]) for row in rows),
    }
    print("; ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items()), f"(goal: at least {GOAL})")
    save("generation", {"settings": vars(arguments), "rows": rows, **ratios})


def run_step(model: Model, recorder: Recorder, settings: GenerateSettings) -> tuple[int, float]:
    """Run the step in a new folder; return its tokens and the seconds of the call."""
    model.engine = recorder  # type: ignore[assignment]
    opened = mock.patch("rlt_data.steps.generate.open_model", return_value=model)
    with tempfile.TemporaryDirectory() as folder, opened:
        start_time = time.perf_counter()
        summary = generate(settings.model_copy(update={"out": f"{folder}/run"}))
        seconds = time.perf_counter() - start_time
    assert not summary.failed and summary.new == settings.n * (settings.limit or 0)
    return summary.tokens, seconds


if __name__ == "__main__":
    main()
