"""The engine against Transformers' own generation and plain forward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rlt_data.engines import (
    Failure,
    Measured,
    PromptRequest,
    Sample,
    SampleRequest,
    Sampling,
    SequenceLogprobs,
    SequenceRequest,
    open_model,
)
from rlt_data.engines.transformers import TransformersEngine
from rlt_data.engines.transformers import model as model_module
from rlt_data.engines.transformers import scoring as scoring_module
from rlt_data.engines.transformers.generation import Generator
from rlt_data.settings import ModelSettings

KINDS = ("chat", "base", "sliding")
GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0, max_tokens=40, stop="<|nothing|>")
WARM = Sampling(temperature=0.7, top_p=1.0, top_k=0, max_tokens=30, stop="<|nothing|>")

TextsOf = Callable[..., tuple[TransformersEngine, Any]]


@pytest.fixture(scope="module")
def engine_of(tiny: Callable[..., Path]) -> Callable[..., TransformersEngine]:
    def make(kind: str = "chat", seed: int = 0, **settings: Any) -> TransformersEngine:
        engine = open_model(str(tiny(kind, seed)), ModelSettings(**settings)).engine
        assert isinstance(engine, TransformersEngine)
        return engine

    return make


def prompts(
    engine: TransformersEngine, lengths: tuple[int, ...] = (37, 5, 61), samples: int = 3
) -> list[PromptRequest]:
    random = np.random.default_rng(0)
    return [
        PromptRequest(
            random.integers(10, engine.model.vocabulary, length).astype(np.int32),
            [SampleRequest(f"{i}-{j}", seed=100 * i + j) for j in range(samples)],
            tail=2,
        )
        for i, length in enumerate(lengths)
    ]


def samples(engine: TransformersEngine, blocks: list[list[PromptRequest]], sampling: Sampling) -> dict[str, Sample]:
    by_key = {}
    for sample in engine.generate(blocks, sampling):
        assert isinstance(sample, Sample) and sample.key not in by_key
        by_key[sample.key] = sample
    return by_key


def plain_logprobs(engine: TransformersEngine, ids: np.ndarray, temperature: float) -> torch.Tensor:
    with torch.no_grad():
        logits = engine.model._model(torch.from_numpy(ids[None].astype(np.int64))).logits[0].float()
    return (logits / temperature).log_softmax(-1)


def scored(engine: TransformersEngine, block: list[list[SequenceRequest]], temperature: float) -> dict[str, Any]:
    results = list(engine.logprobs([block], temperature))
    assert all(isinstance(result, SequenceLogprobs) for result in results)
    return {result.key: result.logprobs for result in results if isinstance(result, SequenceLogprobs)}


# Generation


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_samples_are_those_of_transformers(engine_of: Any, tiny: Any, kind: str) -> None:
    engine = engine_of(kind)
    requests = prompts(engine, samples=1)
    by_key = samples(engine, [requests], GREEDY)
    reference = AutoModelForCausalLM.from_pretrained(tiny(kind))
    for request in requests:
        ids = torch.from_numpy(request.ids[None].astype(np.int64))
        generated = reference.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40)
        expected = [token for token in generated[0, ids.shape[1] :].tolist() if token not in engine.model.end_tokens]
        assert by_key[request.samples[0].key].token_ids.tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_the_same_whatever_the_batch(engine_of: Any, kind: str) -> None:
    engine, small = engine_of(kind), engine_of(kind, batch_size=2, batch_tokens=40)
    requests = prompts(engine)
    together = samples(engine, [requests], WARM)
    alone = samples(small, [[request] for request in reversed(requests)], WARM)
    assert together.keys() == alone.keys() and len(together) == 9
    for key, sample in together.items():
        assert sample.token_ids.tolist() == alone[key].token_ids.tolist() and sample.text == alone[key].text
        assert np.allclose(sample.logprobs, alone[key].logprobs, atol=1e-4)
        assert np.allclose(sample.tail_logprobs, alone[key].tail_logprobs, atol=1e-4)
    assert len({sample.token_ids.tobytes() for sample in together.values()}) > 3  # seeds differ


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.3])
def test_logprobs_are_those_of_a_forward_pass_at_the_sampling_temperature(
    engine_of: Any, kind: str, temperature: float
) -> None:
    engine = engine_of(kind)
    requests = prompts(engine)
    sampling = Sampling(temperature, 1.0, 0, 30, "<|nothing|>")
    for key, sample in samples(engine, [requests], sampling).items():
        prompt = requests[int(key[0])].ids
        ids = np.concatenate([prompt, sample.token_ids])
        expected = plain_logprobs(engine, ids, temperature or 1.0)
        positions = np.arange(len(prompt) - 2, len(ids))
        got = np.concatenate([sample.tail_logprobs, sample.logprobs])
        assert np.allclose(got, expected[positions - 1, ids[positions]].numpy(), atol=1e-4)
        assert sample.prompt_tokens == len(prompt)


def test_a_block_gives_the_same_bits_again_also_if_only_some_samples_are_emitted(engine_of: Any) -> None:
    engine = engine_of(batch_size=4)
    requests = prompts(engine)
    complete = samples(engine, [requests], WARM)
    emitted = {"1-2", "2-0"}
    partly = [
        PromptRequest(r.ids, [SampleRequest(s.key, s.seed, s.key in emitted) for s in r.samples], r.tail)
        for r in requests
    ]
    again = samples(engine, [partly], WARM)
    assert again.keys() == emitted
    for key, sample in again.items():
        assert sample.logprobs.tobytes() == complete[key].logprobs.tobytes()
        assert sample.token_ids.tobytes() == complete[key].token_ids.tobytes()


def test_samples_end_at_the_stop_text_the_models_end_or_the_limit(engine_of: Any) -> None:
    engine = engine_of()
    ends = set()
    for sample in samples(engine, [prompts(engine, samples=40)], Sampling(1.5, 1.0, 0, 60, "e")).values():
        ends.add(sample.finish_reason)
        assert ("e" in sample.text) == (sample.finish_reason == "stop")
        assert len(sample.token_ids) <= 60 and not set(sample.token_ids.tolist()) & engine.model.end_tokens
        assert len(sample.logprobs) == len(sample.token_ids)
    assert ends >= {"stop", "eos"}
    long = samples(engine, [prompts(engine, samples=4)], Sampling(0.7, 1.0, 0, 3, "<|nothing|>"))
    assert {sample.finish_reason for sample in long.values()} == {"length"}
    assert {len(sample.token_ids) for sample in long.values()} == {3}


def test_without_a_limit_a_sample_may_use_what_the_context_leaves(engine_of: Any) -> None:
    engine = engine_of()
    request = prompts(engine, lengths=(2040,), samples=2)
    by_key = samples(engine, [request], Sampling(0.7, 1.0, 0, None, "<|nothing|>"))
    assert max(len(sample.token_ids) for sample in by_key.values()) <= engine.context_length - 2040 == 8


@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 5), (0.5, 0), (0.9, 3)])
def test_restricted_sampling_stays_inside_the_likeliest_tokens(engine_of: Any, top_p: float, top_k: int) -> None:
    engine = engine_of()
    requests = prompts(engine)
    for key, sample in samples(engine, [requests], Sampling(1.0, top_p, top_k, 20, "<|nothing|>")).items():
        prompt = requests[int(key[0])].ids
        logprobs = plain_logprobs(engine, np.concatenate([prompt, sample.token_ids]), 1.0)
        for step, token in enumerate(sample.token_ids.tolist()):
            ordered = logprobs[len(prompt) - 1 + step].exp().sort(descending=True)
            rank = ordered.indices.tolist().index(token)
            assert not top_k or rank < top_k
            assert ordered.values[:rank].sum() < top_p + 1e-4
            assert sample.logprobs[step] == pytest.approx(logprobs[len(prompt) - 1 + step, token].item(), abs=1e-4)


def test_memory_that_runs_out_halves_the_batch_and_fails_only_what_never_fits(
    engine_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of()
    requests = prompts(engine)
    complete = samples(engine, [requests], WARM)
    _limit_memory(engine, monkeypatch, rows=2)
    results = list(engine.generate([requests], WARM))
    assert {result.key for result in results} == complete.keys()
    for result in results:
        assert isinstance(result, Sample) and result.token_ids.tolist() == complete[result.key].token_ids.tolist()
    _limit_memory(engine, monkeypatch, rows=0)
    failures = list(engine.generate([requests], WARM))
    assert len(failures) == 9 and all(isinstance(f, Failure) and "out of memory" in f.reason for f in failures)


def _limit_memory(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Let the model run out of memory on more than a few rows, as a device would."""
    hidden = type(engine.model).hidden

    def limited(ids: torch.Tensor, *arguments: Any) -> torch.Tensor:
        if len(ids) > rows:
            raise torch.OutOfMemoryError("pretended")
        return hidden(engine.model, ids, *arguments)

    monkeypatch.setattr(engine.model, "hidden", limited)


# Scoring


def text_groups(engine: TransformersEngine, shared: int = 40) -> list[list[SequenceRequest]]:
    """Return groups of several texts with a common prefix, of one text, and of texts without a common prefix."""
    random = np.random.default_rng(1)
    size = engine.model.vocabulary

    def draw(length: int) -> np.ndarray:
        return random.integers(10, size, length).astype(np.int32)

    groups = []
    for group, (length, continuations) in enumerate([(shared, (9, 30, 80, 12)), (shared + 21, (50,)), (0, (20, 33))]):
        prefix = draw(length)
        texts = [np.concatenate([prefix, draw(continuation)]) for continuation in continuations]
        groups.append(
            [
                SequenceRequest(f"{group}-{i}", text, np.arange(max(length, 3) + 1, len(text) - 2, dtype=np.int32))
                for i, text in enumerate(texts)
            ]
        )
    return groups


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_tokens", [30, 200, 4096])
def test_scores_are_those_of_a_forward_pass_whatever_the_batch(engine_of: Any, kind: str, batch_tokens: int) -> None:
    engine = engine_of(kind, batch_tokens=batch_tokens)
    block = text_groups(engine)
    by_key = scored(engine, block, 0.7)
    assert by_key.keys() == {request.key for group in block for request in group}
    for request in (request for group in block for request in group):
        expected = plain_logprobs(engine, request.ids, 0.7)[request.positions - 1, request.ids[request.positions]]
        assert np.allclose(by_key[request.key], expected.numpy(), atol=1e-4)


def test_the_shared_prefix_is_computed_once_and_the_head_runs_on_scored_tokens_only(
    engine_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of()
    tokens: list[int] = []
    rows: list[int] = []
    hidden, logprobs = type(engine.model).hidden, type(engine.model).token_logprobs

    def count_hidden(ids: torch.Tensor, *arguments: Any) -> torch.Tensor:
        tokens.append(ids.numel())
        return hidden(engine.model, ids, *arguments)

    def count_rows(states: torch.Tensor, *arguments: Any) -> torch.Tensor:
        rows.append(len(states))
        return logprobs(engine.model, states, *arguments)

    monkeypatch.setattr(engine.model, "hidden", count_hidden)
    monkeypatch.setattr(engine.model, "token_logprobs", count_rows)
    random = np.random.default_rng(0)
    beginning = random.integers(10, 300, 500).astype(np.int32)
    texts = [np.concatenate([beginning, random.integers(10, 300, 20).astype(np.int32)]) for _ in range(16)]
    group = [SequenceRequest(str(i), text, np.arange(505, 515, dtype=np.int32)) for i, text in enumerate(texts)]
    list(engine.logprobs([[group]], 0.7))
    assert sum(tokens) <= 500 + 16 * 15
    assert sum(rows) == 16 * 10


def test_a_block_scores_to_the_same_bits_if_only_some_texts_are_emitted(engine_of: Any) -> None:
    engine = engine_of(batch_tokens=64)
    block = text_groups(engine)
    complete = scored(engine, block, 0.7)
    partly = [[SequenceRequest(r.key, r.ids, r.positions, r.key in ("0-2", "2-1")) for r in group] for group in block]
    again = scored(engine, partly, 0.7)
    assert again.keys() == {"0-2", "2-1"}
    assert all(again[key].tobytes() == complete[key].tobytes() for key in again)


def test_a_text_without_scored_tokens_gives_no_result(engine_of: Any) -> None:
    engine = engine_of()
    ids, nothing = np.arange(10, 60, dtype=np.int32), np.zeros(0, np.int32)
    block = [[SequenceRequest("a", ids, nothing), SequenceRequest("b", ids, np.array([5], np.int32))]]
    assert scored(engine, block, 1.0).keys() == {"b"}
    assert scored(engine, [[SequenceRequest("a", ids, nothing)], []], 1.0) == {}


def test_scoring_continues_one_by_one_if_memory_runs_out(engine_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of()
    block = text_groups(engine)
    complete = scored(engine, block, 0.7)
    _limit_memory(engine, monkeypatch, rows=1)
    again = scored(engine, block, 0.7)
    assert again.keys() == complete.keys()
    assert all(np.allclose(again[key], complete[key], atol=1e-4) for key in complete)
    _limit_memory(engine, monkeypatch, rows=0)
    failed = list(engine.logprobs([block], 0.7))
    assert {result.key for result in failed} == complete.keys() and all(isinstance(r, Failure) for r in failed)


@pytest.mark.parametrize("kind", KINDS)
def test_full_kl_is_the_divergence_of_the_two_distributions(engine_of: Any, kind: str) -> None:
    teacher, student = engine_of(kind, 1), engine_of(kind, 0)
    [group, *_] = text_groups(student)
    results = {r.key: r.logprobs for r in teacher.full_kl(group, student, group, 0.7)}
    for request in group:
        p = plain_logprobs(teacher, request.ids, 0.7)[request.positions - 1]
        q = plain_logprobs(student, request.ids, 0.7)[request.positions - 1]
        assert np.allclose(results[request.key], (p.exp() * (p - q)).sum(-1).numpy(), atol=1e-3)
        assert (results[request.key] > -1e-5).all()


def test_the_cache_of_a_batch_takes_at_most_a_share_of_the_gpu(engine_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of()
    block, rows = text_groups(engine), []
    model, run = engine.model, engine.model.hidden
    monkeypatch.setattr(type(model), "gpu_bytes", 8 * 300 * model.bytes_per_token)

    def record(ids: torch.Tensor, mask: torch.Tensor, *arguments: Any) -> torch.Tensor:
        rows.append(mask.numel())
        return run(ids, mask, *arguments)  # type: ignore[no-any-return]

    monkeypatch.setattr(model, "hidden", record)
    complete = scored(engine, block, 0.7)
    assert max(rows) > 300
    rows.clear()
    limited = TransformersEngine(model, engine._generator._tokenizer, ModelSettings())
    assert scored(limited, block, 0.7).keys() == complete.keys()
    assert max(rows) <= 300


def test_short_beginnings_are_not_split_off() -> None:
    ids = np.arange(100, dtype=np.int32)
    other = ids.copy()
    other[50:] += 1
    positions = np.array([70], np.int32)
    a, b = SequenceRequest("a", ids, positions), SequenceRequest("b", other, positions)
    assert scoring_module._shared_prefix([a, b]) == 50
    assert scoring_module._shared_prefix([a]) == 0
    early = SequenceRequest("c", ids, np.array([10], np.int32))
    assert scoring_module._shared_prefix([a, early]) == 0  # its logit comes from token 9


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    yield


def test_memory_that_pytorch_keeps_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that every block gets the batches of the first, though the driver sees less and less free memory."""
    model: Any = SimpleNamespace(device=torch.device("cuda"), bytes_per_token=1000, context_length=2000)
    generator = Generator(model, None, batch_size=None, batch_tokens=100)  # type: ignore[arg-type]
    block = [PromptRequest(np.arange(1000, dtype=np.int32), [SampleRequest("a", seed=0)])]
    sizes = []
    for driver, reserved, allocated in [(100e6, 0, 0), (30e6, 75e6, 5e6), (0, 100e6, 0)]:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=driver: (int(free), 10**9))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _, bytes=reserved: int(bytes))
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _, bytes=allocated: int(bytes))
        sizes.append(generator._fitting_size(block, WARM))
    assert sizes == [67, 67, 67]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("blocks", [(2048, 4096), (7, 64)])
def test_measures_are_those_of_the_complete_distribution(
    engine_of: Any, monkeypatch: pytest.MonkeyPatch, kind: str, blocks: tuple[int, int]
) -> None:
    """Texts with and without measures, at several temperatures, in one batch."""
    monkeypatch.setattr(model_module, "_BLOCK_ROWS", blocks[0])
    monkeypatch.setattr(model_module, "_BLOCK_VOCABULARY_CPU", blocks[1])
    engine = engine_of(kind)
    random = np.random.default_rng(3)
    requests = []
    for number, measured in enumerate([Measured(20, 1.0), None, Measured(7, 1.3), Measured(0, 1.0), Measured(5, 0.7)]):
        ids = random.integers(10, engine.model.vocabulary, 60).astype(np.int32)
        requests.append(SequenceRequest(str(number), ids, np.arange(20, 60, 2, dtype=np.int32), measured=measured))
    plain = [replace(request, measured=None) for request in requests]
    unmeasured = scored(engine, [plain], 0.7)
    for result in engine.logprobs([[requests]], 0.7):
        assert isinstance(result, SequenceLogprobs)
        assert np.array_equal(result.logprobs, unmeasured[result.key])  # to the last bit
        request = requests[int(result.key)]
        if request.measured is None:
            assert result.ranks is None and result.measured_logprobs is None
            continue
        count, temperature = request.measured.tokens, request.measured.temperature
        at = request.positions[:count]
        expected = plain_logprobs(engine, request.ids, temperature)[at - 1]
        targets = torch.from_numpy(request.ids[at].astype(np.int64))[:, None]
        of_targets = expected.gather(1, targets)
        assert result.ranks is not None
        assert result.ranks.tolist() == (1 + (expected > of_targets).sum(-1)).tolist()
        if temperature == 0.7:
            assert result.measured_logprobs is None  # they are the first log-probs
        else:
            assert result.measured_logprobs is not None and len(result.measured_logprobs) == count
            assert np.allclose(result.measured_logprobs, of_targets[:, 0], atol=1e-4)
