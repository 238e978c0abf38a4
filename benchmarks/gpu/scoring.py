"""Sections about scoring: matrix products, Transformers alone, the engine, sliding windows, and dtypes."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.bench import TEMPERATURE, Bench, Row, Rows, Unexpected
from benchmarks.gpu.device import free, measured
from benchmarks.gpu.models import Groups, main_config, random_model, sliding_config
from benchmarks.operations import Decoder
from rlt_data.engines import SequenceLogprobs, SequenceRequest
from rlt_data.engines.transformers import TransformersEngine

#: Positions whose logits a plain forward pass computes at a time, so that they fit into memory.
_PLAIN_ROWS = 2048
#: Tokens of a plain forward pass over several texts.
_PLAIN_TOKENS = 16_384
#: Mean difference of log-probs that rounding to bfloat16 may cause. Those of unrelated tokens differ by about 5.
_ROUNDING = 0.3

Logprobs = dict[str, np.ndarray]


def matmul(bench: Bench) -> Rows:
    """Multiply two large bfloat16 matrices; the other sections state their rate as a share of this one."""
    size = bench.scale.matrix
    left, right = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(13):
        with measured(bench.device) as usage:
            torch.matmul(left, right)
        seconds.append(usage.seconds)
    bench.matmul_rate = 2 * size**3 / statistics.median(seconds[3:])
    yield {"matrices": f"{size} x {size}, bfloat16", "TFLOP/s": round(bench.matmul_rate / 1e12, 3)}


def plain_scoring(bench: Bench) -> Rows:
    """Score with Transformers alone: batches of equal length without padding, LM head at scored positions."""
    for texts in (bench.scale.long, bench.scale.short):
        yield _score_plainly(bench, bench.model, texts.make(bench.config.vocab_size), str(texts))


def scoring(bench: Bench) -> Rows:
    """Score with the engine: each text with its prompt, and prompts computed once.

    Raises:
        Unexpected: a text was not scored, or its log-probs differ from those of Transformers by more than rounding.
    """
    for texts in (bench.scale.long, bench.scale.short):
        groups = texts.make(bench.config.vocab_size)
        yield from _score_with_engine(bench, bench.engine, bench.config, groups, str(texts))


def sliding_windows(bench: Bench) -> Rows:
    """Score long texts with a small model whose layers mostly have a window, plainly and with the engine."""
    config = sliding_config(bench.scale)
    groups, name = bench.scale.long.make(config.vocab_size), f"{bench.scale.long}, sliding windows"
    model = random_model(config, bench.device)
    yield _score_plainly(bench, model, groups, name)
    checkpoint = bench.save(model, "sliding")
    del model
    yield from _score_with_engine(bench, bench.load(checkpoint), config, groups, name)


def dtypes(bench: Bench) -> Rows:
    """Score short texts with the small model in bfloat16 and in float32; both shares are of the bfloat16 product."""
    config = main_config(bench.scale, layers=bench.scale.small_layers)
    groups = bench.scale.short.make(config.vocab_size)[:1]
    for dtype in ("bfloat16", "float32"):
        engine = bench.load(bench.small_checkpoint(), dtype=dtype)
        figures, _ = _run(bench, engine, config, groups, shared=True)
        yield {"layers": config.num_hidden_layers, "dtype": dtype} | figures
        del engine
        free(bench.device)


def _score_plainly(bench: Bench, model: Any, groups: Groups, name: str) -> Row:
    requests = [request for group in groups for request in group]
    rows = max(1, _PLAIN_TOKENS // len(requests[0].ids))
    _plain_logprobs(model, requests[:rows], rows)
    with measured(bench.device) as usage:
        bench.plain_logprobs[name] = _plain_logprobs(model, requests, rows)
    tokens = sum(len(request.ids) for request in requests)
    bench.plain_rates[name] = tokens / usage.seconds
    operations = scoring_operations(model.config, groups, shared=False)
    return {
        "texts": name,
        "side": "Transformers alone",
        "tokens/s": round(tokens / usage.seconds),
        "of matmul": bench.share_of_matmul(operations, usage.seconds),
        "peak GiB": usage.peak_gib,
    }


@torch.inference_mode()
def _plain_logprobs(model: Any, requests: list[SequenceRequest], rows: int) -> Logprobs:
    """Return the log-probs of texts of one length, computed ``rows`` texts at a time."""
    head, logprobs = model.get_output_embeddings(), {}
    for start in range(0, len(requests), rows):
        batch = requests[start : start + rows]
        ids = torch.from_numpy(np.stack([request.ids for request in batch]).astype(np.int64)).to(model.device)
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        for row, request in enumerate(batch):
            pieces = []
            for positions in torch.from_numpy(request.positions.astype(np.int64)).to(model.device).split(_PLAIN_ROWS):
                logits = head(hidden[row, positions - 1]).float() / TEMPERATURE
                pieces.append(logits.log_softmax(-1).gather(1, ids[row, positions, None])[:, 0])
            logprobs[request.key] = torch.cat(pieces).cpu().numpy()
    return logprobs


def _score_with_engine(bench: Bench, engine: TransformersEngine, config: Any, groups: Groups, name: str) -> Rows:
    separate = [[request] for group in groups for request in group]
    arrangements = (("engine, separate texts", separate, False), ("engine, shared prompts", groups, True))
    plain = bench.plain_logprobs.get(name)
    for side, arranged, shared in arrangements:
        figures, logprobs = _run(bench, engine, config, arranged, shared=shared)
        row = {"texts": name, "side": side} | figures
        if plain is not None:
            differences = np.abs(np.concatenate([logprobs[key] - plain[key] for key in logprobs]))
            row["x plain"] = round(figures["tokens/s"] / bench.plain_rates[name], 2)
            row["mean difference"] = round(float(differences.mean()), 4)
            row["largest"] = round(float(differences.max()), 4)
        yield row
        if row.get("mean difference", 0) > _ROUNDING:
            raise Unexpected(f"log-probs differ from those of Transformers by more than rounding: {name}, {side}")


def _run(
    bench: Bench, engine: TransformersEngine, config: Any, groups: Groups, *, shared: bool
) -> tuple[Row, Logprobs]:
    """Score groups with an engine, and return figures and log-probs.

    Raises:
        Unexpected: a text was not scored.
    """
    list(engine.logprobs([groups[: max(1, len(groups) // 4)]], TEMPERATURE))
    with measured(bench.device) as usage:
        results = list(engine.logprobs([groups], TEMPERATURE))
    logprobs = {result.key: result.logprobs for result in results if isinstance(result, SequenceLogprobs)}
    requests = [request for group in groups for request in group]
    if missing := len(requests) - len(logprobs):
        raise Unexpected(f"{missing} of {len(requests)} texts were not scored: {results[-1]}")
    figures = {
        "tokens/s": round(sum(len(request.ids) for request in requests) / usage.seconds),
        "of matmul": bench.share_of_matmul(scoring_operations(config, groups, shared=shared), usage.seconds),
        "peak GiB": usage.peak_gib,
        "out of memory": usage.out_of_memory,
    }
    return figures, logprobs


def scoring_operations(config: Any, groups: Groups, *, shared: bool) -> float:
    """Return the operations of scoring texts; see :mod:`benchmarks.operations`.

    Args:
        config: configuration of the model.
        groups: texts whose prompt ends before the first scored token.
        shared: compute the prompt of a group once, up to the token before its last.
    """
    decoder, total = Decoder.of(config), 0.0
    for group in groups:
        prompt = int(group[0].positions[0]) - 1 if shared else 0
        total += decoder.operations(prompt, 0, 0)
        for request in group:
            total += decoder.operations(int(request.positions[-1]), prompt, len(request.positions))
    return total
