"""The server engine against real servers of several kinds on loopback, over tiny models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from transformers import (
    AutoTokenizer,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from rlt_data.engines import (
    Engine,
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
from rlt_data.errors import ModelError, SettingsError
from rlt_data.settings import GenerateSettings, ModelSettings, parse_settings
from tests.conftest import Rlt, write_jsonl
from tests.engines.conftest import divided
from tests.engines.serving import Process, unused_port
from tests.engines.test_open import SMALL

Tiny = Callable[..., Path]
Read = Callable[[Path, str], pl.DataFrame]
Open = Callable[..., Engine]

WARM = Sampling(temperature=0.7, top_p=1.0, top_k=0, max_tokens=16, stop="e")
PROMPTS = [np.random.default_rng(0).integers(10, 300, length).astype(np.int32) for length in (37, 5, 61)]


@pytest.fixture
def opened(tiny: Tiny) -> Iterator[Open]:
    """Open the server engine for URLs: opened(url, model="chat", scoring=False, served_temperature=1.0, **settings)."""
    engines = []

    def open_engine(
        *urls: str, model: str = "chat", scoring: bool = False, served_temperature: float = 1.0, **settings: Any
    ) -> Engine:
        how = ModelSettings(engine="server", url=urls, **settings)
        opened_model = open_model(str(tiny(model)), how, scoring=scoring, served_temperature=served_temperature)
        engines.append(opened_model.engine)
        return engines[-1]

    yield open_engine
    for engine in engines:
        engine.close()


def local(folder: Path) -> Engine:
    return open_model(str(folder), ModelSettings(dtype="float32")).engine


def block(samples: int = 4, prompts: list[np.ndarray] = PROMPTS) -> list[PromptRequest]:
    return [
        PromptRequest(ids, [SampleRequest(f"{i}-{j}", seed=100 * i + j) for j in range(samples)], tail=2)
        for i, ids in enumerate(prompts)
    ]


def samples(engine: Engine, requests: list[PromptRequest], sampling: Sampling = WARM) -> dict[str, Sample]:
    by_key = {}
    for sample in engine.generate([requests], sampling):
        assert isinstance(sample, Sample), sample
        assert sample.key not in by_key
        by_key[sample.key] = sample
    return by_key


def assert_same(served: dict[str, Sample], expected: dict[str, Sample], *, ids: bool, logprobs: bool) -> None:
    """Assert that samples equal those of another engine, as far as a server returns them."""
    assert served.keys() == expected.keys()
    for key, sample in expected.items():
        got = served[key]
        assert (got.text, got.finish_reason) == (sample.text, sample.finish_reason), key
        assert got.prompt_tokens == sample.prompt_tokens
        assert (got.token_ids is not None) == ids and (got.logprobs is not None) == logprobs
        if ids:
            assert got.token_ids.tolist() == sample.token_ids.tolist() and got.end_token == sample.end_token
            assert got.completion_tokens == sample.completion_tokens
        if logprobs:
            assert np.allclose(got.logprobs, sample.logprobs, atol=1e-5)
            assert np.allclose(got.tail_logprobs, sample.tail_logprobs, atol=1e-5)
        else:
            assert got.tail_logprobs is None


# Sampling


@pytest.mark.parametrize(
    ("kind", "temperature", "ids", "logprobs"),
    [
        ("vllm", 0.7, True, True),
        ("vllm", 0.0, True, True),
        ("raw", 1.0, True, True),
        ("raw", 0.7, True, False),
        ("reporting", 0.7, False, False),
        ("hosted", 0.7, False, False),
    ],
)
def test_samples_are_those_of_the_model_as_far_as_the_server_tells(
    server: Process, opened: Open, tiny: Tiny, kind: str, temperature: float, ids: bool, logprobs: bool
) -> None:
    prompts = block(6 if temperature else 1)
    if not ids:  # what goes as text must come back from it
        tokenizer = AutoTokenizer.from_pretrained(tiny())
        texts = ["What is 17 times 23?<|im_end|>\n", "Où est l'élève? ", "def add(a, b):\n"]
        prompts = block(6, [np.asarray(tokenizer(text)["input_ids"], np.int32) for text in texts])
    sampling = Sampling(temperature, 1.0, 0, 16, "e")
    expected = samples(local(tiny()), prompts, sampling)
    assert temperature == 0 or {sample.finish_reason for sample in expected.values()} >= {"stop", "length"}
    served = samples(opened(server.url(kind)), prompts, sampling)
    if not ids:  # a text ends with the stop text, whatever the last token holds beyond it
        expected = {
            key: replace(sample, text="".join(sample.text.partition("e")[:2])) for key, sample in expected.items()
        }
    assert_same(served, expected, ids=ids, logprobs=logprobs)


def test_a_model_ends_with_its_own_token(server: Process, opened: Open, tiny: Tiny) -> None:
    prompts, sampling = block(8), Sampling(1.5, 1.0, 0, 40, "<|nothing|>")
    served = samples(opened(server.url()), prompts, sampling)
    assert_same(served, samples(local(tiny()), prompts, sampling), ids=True, logprobs=True)
    assert {sample.finish_reason for sample in served.values()} == {"eos", "length"}
    assert {sample.end_token for sample in served.values() if sample.finish_reason == "eos"} != {None}
    texts = samples(opened(server.url("reporting")), prompts, sampling)
    assert {sample.finish_reason for sample in texts.values()} == {"eos", "length"}


def test_a_padding_that_the_server_does_not_tell_the_logprob_of(
    server: Process, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    served = samples(opened(server.url("older")), block(2))
    assert all(sample.logprobs is None and sample.token_ids is not None for sample in served.values())
    assert caplog.text.count("log-prob of a prompt's last token") == 1


def test_log_probs_of_a_part_of_the_vocabulary_are_left_out(
    server: Process, opened: Open, tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    sampling = Sampling(0.7, 0.9, 5, 10, "<|nothing|>")
    served = samples(opened(server.url()), block(), sampling)
    assert_same(served, samples(local(tiny()), block(), sampling), ids=True, logprobs=False)
    assert server.url() in caplog.text and "--top-k and --top-p" in caplog.text
    with pytest.raises(ModelError, match="--top-k: a server refuses this parameter"):
        opened(server.url("hosted")).generate([block()], sampling)


@pytest.mark.parametrize("kind", ["vllm", "hosted"])
def test_a_prompt_has_one_bos_token(server: Process, opened: Open, tiny: Tiny, kind: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny("base"))
    [prompt] = block(8, [np.asarray(tokenizer("What is 17 times 23?")["input_ids"], np.int32)])
    assert prompt.ids[0] == tokenizer.bos_token_id
    expected = samples(local(tiny("base")), [prompt])
    served = samples(opened(server.url(kind, "base"), model="base"), [prompt])
    assert all(expected[key].text.startswith(sample.text.rstrip("\ufffd")) for key, sample in served.items())


def test_a_sample_that_is_not_emitted_is_not_requested_and_one_that_is_refused_fails_alone(
    server: Process, opened: Open
) -> None:
    engine = opened(server.url())
    before = server.seen()["requests"]
    pair = [SampleRequest("emitted", 1), SampleRequest("not emitted", 2, emit=False)]
    requests = [PromptRequest(PROMPTS[0], pair), PromptRequest(np.asarray([9999], np.int32), [SampleRequest("bad", 3)])]
    results = {result.key: result for result in engine.generate([requests], WARM)}
    assert results.keys() == {"emitted", "bad"} and isinstance(results["emitted"], Sample)
    assert isinstance(results["bad"], Failure) and results["bad"].reason.startswith("HTTP 400: no such token")
    assert server.seen()["requests"] == before + 2


def test_two_streams_may_be_taken_in_turns(server: Process, opened: Open) -> None:
    engine = opened(server.url(), concurrency=2)
    complete = samples(engine, block())
    one, two = (engine.generate([block()], WARM) for _ in range(2))
    pairs = list(zip(one, two, strict=True))
    for stream in zip(*pairs, strict=True):
        assert {sample.key: sample.text for sample in stream} == {key: s.text for key, s in complete.items()}


# Scoring


def texts() -> list[list[SequenceRequest]]:
    random = np.random.default_rng(1)
    groups = []
    for number in range(3):
        shared = random.integers(5, 300, 30)
        group = []
        for member in range(4):
            ids = np.concatenate([shared, random.integers(5, 300, random.integers(5, 60))]).astype(np.int32)
            group.append(SequenceRequest(f"{number}-{member}", ids, np.arange(31, len(ids) - 2, dtype=np.int32)))
        groups.append(group)
    return groups


def scores(engine: Engine, groups: list[list[SequenceRequest]], temperature: float) -> dict[str, np.ndarray]:
    results = list(engine.logprobs([groups], temperature))
    assert all(isinstance(result, SequenceLogprobs) for result in results), results
    return {result.key: result.logprobs for result in results if isinstance(result, SequenceLogprobs)}


@pytest.mark.parametrize("kind", ["vllm", "echo"])
def test_scoring_gives_the_models_logprobs(server: Process, opened: Open, tiny: Tiny, kind: str) -> None:
    groups = texts()
    groups[0].append(SequenceRequest("nothing", groups[0][0].ids, np.zeros(0, np.int32)))
    groups[1].append(SequenceRequest("not emitted", groups[1][0].ids, groups[1][0].positions, emit=False))
    served = scores(opened(server.url(kind), scoring=True), groups, 1.0)
    assert len(served) == 12
    for key, values in scores(local(tiny()), groups, 1.0).items():
        assert np.allclose(served[key], values, atol=1e-4), key


@pytest.mark.parametrize("kind", ["vllm", "echo"])
def test_ranks_are_those_of_the_response(server: Process, opened: Open, tiny: Tiny, kind: str) -> None:
    """A server whose responses have no ranks gives none."""
    groups = [[replace(text, measured=Measured(3, 1.0)) for text in group] for group in texts()]
    expected = {result.key: result for result in local(tiny()).logprobs([groups], 1.0)}
    for result in opened(server.url(kind), scoring=True).logprobs([groups], 1.0):
        assert isinstance(result, SequenceLogprobs)
        if kind == "echo":
            assert result.ranks is None
        else:
            ranks = expected[result.key].ranks  # type: ignore[union-attr]
            assert result.ranks is not None and result.ranks.tolist() == ranks.tolist()  # type: ignore[union-attr]


def test_a_copy_with_a_divided_head_gives_logprobs_at_the_temperature(
    server: Process, opened: Open, tiny: Tiny
) -> None:
    groups = texts()
    expected = scores(local(tiny()), groups, 0.7)
    warm = opened(server.url("vllm", "copy"), scoring=True, served_temperature=0.7)
    for key, values in scores(warm, groups, 0.7).items():
        assert np.allclose(values, expected[key], atol=1e-4)
    with pytest.raises(ModelError, match="at temperature 0.7"):
        warm.logprobs([groups], 1.0)


def _cohere() -> Any:
    return CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.3))


def _phi() -> Any:
    model = PhiForCausalLM(PhiConfig(**SMALL))
    torch.nn.init.normal_(model.lm_head.bias)
    return model


@pytest.mark.parametrize("make", ["base", _cohere, _phi], ids=["tied", "scaled", "bias"])
def test_any_head_that_ends_in_the_logits_can_be_divided(make: Any, tiny: Tiny, tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = tiny("base")
    if callable(make):
        student = tmp_path / "student"
        make().save_pretrained(student)
        AutoTokenizer.from_pretrained(tiny()).save_pretrained(student)
    copy = scores(local(divided(student, tmp_path / "copy")), texts(), 1.0)
    for key, values in scores(local(student), texts(), 0.7).items():
        assert np.allclose(values, copy[key], atol=1e-4)


def test_a_head_whose_logits_are_capped_cannot_be_divided(tiny: Tiny, tmp_path: Path) -> None:
    config = Gemma2Config(**SMALL, head_dim=16, final_logit_softcapping=5.0)
    Gemma2ForCausalLM(config).save_pretrained(tmp_path / "student")
    with pytest.raises(AssertionError, match="not the last step"):
        divided(tmp_path / "student", tmp_path / "copy")


# What is refused


def refusal(opened: Open, *urls: str, **settings: Any) -> str:
    with pytest.raises(ModelError) as error:
        opened(*urls, **settings)
    return str(error.value)


def test_urls_that_will_not_do(server: Process, opened: Open, tiny: Tiny) -> None:
    nowhere = f"http://127.0.0.1:{unused_port()}/v1"
    good = server.url()
    assert refusal(opened, good, nowhere).startswith(f"{nowhere}: cannot be reached: ")
    short = good.removesuffix("/v1")
    assert refusal(opened, short).startswith(f"{short}: ") and refusal(opened, short).endswith(f"--url {good}")
    wrong = f"{server.at}/v2"
    assert refusal(opened, wrong).startswith(f"{wrong}: ") and "HTTP 404: nothing at /v2/comp" in refusal(opened, wrong)
    other = server.url("other")
    assert refusal(opened, good, other) == (
        f"{good} serves tiny, {other} serves another: --url takes servers of one model"
    )
    assert refusal(opened, good, served_model="tinny") == f"{good}: serves tiny, not tinny (--served-model)"
    assert f"another model than {tiny('base')}" in refusal(opened, good, model="base")
    assert "no log-probs of a prompt's tokens (HTTP 400: Unrec" in refusal(opened, server.url("hosted"), scoring=True)


@pytest.mark.parametrize(
    ("urls", "reason"),
    {
        ("ftp://host/v1",): "number 1 ",
        ("host:8000/v1",): "number 1 ",
        ("http://good/v1", "http://me:secret@host/v1"): "number 2 ",
        ("http://secret@host/v1",): "number 1 ",
        ("https://host/v1?key=secret",): "query",
        ("http:///v1",): "number 1 ",
        ("http://host:port/v1",): "number 1 ",
        ("http://host/v1", "http://host/v1/"): "twice",
    }.items(),
)
def test_invalid_urls_are_refused(urls: tuple[str, ...], reason: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse_settings(GenerateSettings, {"in": "x", "teacher": "x", "engine": "server", "url": urls})
    assert "url" in str(error.value) and reason in str(error.value) and "secret" not in str(error.value)


def test_one_url_needs_no_list() -> None:
    settings = parse_settings(
        GenerateSettings, {"in": "x", "teacher": "x", "engine": "server", "url": "http://host:8000/v1/"}
    )
    assert settings.url == ("http://host:8000/v1",)


@pytest.mark.parametrize(
    ("flags", "causes"),
    [
        ((), ("--temperature 1", "--served-temperature 0.7", "docs/engines.md")),
        (("--temperature", 1, "--teacher", "nano"), ("teacher",)),
        (("--temperature", 1, "--kl", "full"), ("kl", "full", "server")),
    ],
)
def test_what_a_server_cannot_score(rlt: Rlt, tiny: Tiny, flags: tuple[object, ...], causes: tuple[str, ...]) -> None:
    arguments = "--in", "x", "--student", tiny(), "--engine", "server", "--url", "http://host/v1"
    errors = rlt("score", *arguments, *flags, code=2).stderr
    assert all(cause in errors for cause in causes)


def test_traces_without_log_probs_cannot_get_them_from_the_students_servers(
    rlt: Rlt, server: Process, tiny: Tiny, tmp_path: Path
) -> None:
    row = {"question": "q", "solution": "s", "explanation": "Because."}
    rows = write_jsonl(tmp_path / "rows.jsonl", [row])
    arguments = "--in", rows, "--student", tiny(), "--temperature", 1, "--out", "run"
    served = "--engine", "server", "--url", server.url()
    errors = rlt("score", *arguments, *served, code=2).stderr
    assert "1 of 1 traces" in errors and "--engine" in errors
    assert "1 scores (1 new)" in rlt("score", *arguments, *served, "--teacher", "none").stdout
    assert "1 scores (1 new)" in rlt("score", *arguments[:-1], "two", *served, "--teacher", tiny()).stdout


def test_flags_of_servers_go_with_servers(rlt: Rlt, tiny: Tiny) -> None:
    arguments = "--in", "x", "--student", tiny()
    assert "--served-temperature: " in rlt("score", *arguments, "--served-temperature", 0.7, code=2).stderr
    assert "--url: " in rlt("score", *arguments, "--engine", "server", code=2).stderr


# Identity


def test_a_served_model_is_known_by_its_weights_or_by_its_name(tiny: Tiny, tmp_path: Path) -> None:
    def weights(folder: Path, **settings: Any) -> str:
        served = ModelSettings(engine="server", url=("http://host/v1",), **settings)
        model = open_model(str(folder), served)
        assert model.identity.dtype == "served"
        return model.identity.weights

    local = open_model(str(tiny()), ModelSettings()).identity.weights
    assert weights(tiny()) == local
    assert weights(tiny(), served_model="adapter") not in (local, weights(tiny(), served_model="other"))
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in tiny().glob("*.json"):
        (bare / file.name).write_bytes(file.read_bytes())
    assert weights(bare) not in (local, weights(tiny("chat", 1)))


def test_generate_and_score_end_to_end_over_servers(
    server: Process, rlt: Rlt, read: Read, tiny: Tiny, problems: Path
) -> None:
    served = "--engine", "server", "--url", server.url()
    arguments = "--in", problems, "--teacher", tiny(), "--n", 2, "--max-tokens", 20, "--temperature", 1
    rlt("generate", *arguments, *served, "--out", "run")
    rlt("generate", *arguments, "--out", "local")
    expected, served_traces = read(Path("local"), "traces"), read(Path("run"), "traces")
    small = expected["seed"] < 2**63  # servers take 63 bits
    assert small.sum() > 3
    columns = "completion", "finish_reason", "token_ids", "teacher"
    assert served_traces.filter(small).select(columns).equals(expected.filter(small).select(columns))
    assert served_traces["logprob_temperature"].to_list() == [1.0] * 12
    student = "--student", tiny(), "--temperature", 1
    rlt("score", "--in", "run", *student, *served)
    rlt("score", "--in", "run", *student, "--out", "again")
    one, two = (read(Path(run), "scores").sort("trace_id") for run in ("run", "again"))
    assert set(one["teacher_logprobs"]) == {"trace"}
    for term in ("reward", "r_ss", "r_kl"):
        assert float((one[term] - two[term]).abs().max()) < 1e-4  # type: ignore[arg-type]
    arguments = "--in", write_jsonl(problems, [{"question": "What is 1 + 1?", "answer": "2"}]), "--max-tokens", 8
    result = rlt("evaluate", "--benchmark", "math", "--model", tiny(), *arguments, *served, "--out", "answers")
    assert "1 answers" in result.stdout
