"""vLLM's own validation of every argument that the engine passes, and its code for cached prefixes.

No model runs, so these tests also pass with a wheel of vLLM that is unpacked and not installed, whatever hardware the
wheel is for; the environment needs only what vLLM imports:

    PYTHONPATH=UNPACKED_WHEEL python -m pytest tests/vllm/test_arguments.py
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rlt_data.engines import Sampling, find_checkpoint
from rlt_data.engines.protocol import SampleRequest
from rlt_data.engines.vllm.loading import engine_arguments
from rlt_data.engines.vllm.requests import drawn, picks_tokens, scored
from rlt_data.engines.vllm.version import check_version
from rlt_data.settings import ModelSettings

vllm = pytest.importorskip("vllm")
pytest.importorskip("vllm.exceptions")

VERSION = vllm.__version__
IDS = np.arange(200, dtype=np.int32)
#: What vLLM's validation reads of a model with 400 tokens and a context of 512.
MODEL = SimpleNamespace(max_logprobs=20, max_model_len=512, get_vocab_size=lambda: 400, logits_processors=None)
PICKS = picks_tokens(VERSION, SimpleNamespace(use_v2_model_runner=True))


def validated(**params: Any) -> Any:
    """Return vLLM's parameters, made as in the engine and validated as for a request."""
    from vllm.sampling_params import RequestOutputKind

    sampling = vllm.SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, flat_logprobs=True, **params)
    sampling._validate_logprobs(MODEL)
    return sampling


def test_the_version_is_a_supported_one() -> None:
    check_version(VERSION)


@pytest.mark.parametrize("scoring", [True, False])
@pytest.mark.parametrize("gpu", [True, False])
def test_the_arguments_of_the_engine_are_vllms(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, scoring: bool, gpu: bool
) -> None:
    from vllm.engine.arg_utils import EngineArgs

    settings = ModelSettings(engine="vllm", dtype="float32", batch_size=8, batch_tokens=512, max_model_len=256)
    checkpoint = find_checkpoint(str(tiny("wide")))
    with monkeypatch.context() as patch:
        patch.setattr("rlt_data.engines.vllm.loading.pick_device", lambda _: torch.device("cpu"))
        patch.setattr(torch.cuda, "is_available", lambda: gpu)
        arguments = engine_arguments(checkpoint, settings, scoring=scoring)
    assert arguments.keys() <= {field.name for field in dataclasses.fields(EngineArgs)}
    assert ("enforce_eager" in arguments) != gpu and ("enable_chunked_prefill" in arguments) != (gpu or scoring)
    config = EngineArgs(**arguments).create_model_config()
    assert (config.max_model_len, config.logprobs_mode, config.dtype) == (256, "raw_logprobs", torch.float32)


@pytest.mark.parametrize("temperature", [0.7, 0.0])
def test_the_parameters_of_samples_are_vllms(temperature: float) -> None:
    sampling = Sampling(temperature, 0.9, 20, 100, "</explain>")
    params = validated(**drawn(SampleRequest("a", 2**64 - 1), sampling, 100))
    assert (params.max_tokens, params.stop, params.logprobs) == (100, ["</explain>"], 0)
    assert params.temperature == (1.0 if temperature else 0.0) and not params.skip_special_tokens
    assert params.seed == 2**63 - 1 and params.include_stop_str_in_output


@pytest.mark.parametrize("picks", [PICKS, False])
def test_the_parameters_of_scores_are_vllms(picks: bool) -> None:
    params = validated(**scored(IDS, 50, picks_tokens=picks))
    assert params.skip_reading_prefix_cache != picks  # only picked tokens have log-probs after a cached prefix
    assert validated(**scored(IDS, 50, picks_tokens=picks, reads_cache=False)).skip_reading_prefix_cache
    last = validated(**scored(IDS, 50, 7, picks_tokens=picks))
    assert last.logprob_token_ids == [7] and last.max_tokens == 1


def test_one_token_per_position_is_refused_where_the_engine_does_not_ask_for_it() -> None:
    tokens = scored(IDS, 50, picks_tokens=True)
    if PICKS:
        assert validated(**tokens).prompt_logprob_token_ids.shape == (149, 1)
    else:
        with pytest.raises(vllm.exceptions.VLLMValidationError, match="prompt_logprob_token_ids"):
            validated(**tokens)


@pytest.mark.skipif(not PICKS, reason="this version takes the same tokens for all positions")
@pytest.mark.parametrize("cached", [0, 16, 48, 64])
@pytest.mark.parametrize("chunk", [200, 64, 7])
def test_values_after_a_cached_prefix_are_those_without_a_cache(
    monkeypatch: pytest.MonkeyPatch, cached: int, chunk: int
) -> None:
    """Run vLLM's code for scored tokens, as its V2 runner does, over a prompt whose first tokens are cached.

    Values are logits, because vLLM computes log-probs by a GPU kernel. Nothing is copied to a GPU.
    """
    from vllm.v1.worker.gpu.sample import prompt_logprob

    monkeypatch.setattr(prompt_logprob, "async_tensor_h2d", lambda ids, _, dtype: torch.from_numpy(ids).to(dtype))
    start, hidden = 50, torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    head = torch.randn(8, 400, generator=torch.Generator().manual_seed(1))
    worker = prompt_logprob.PromptLogprobsWorker(4, torch.device("cpu"), "raw_logits")
    worker.add_request("a", 2, validated(**scored(IDS, start, picks_tokens=True)))
    result: dict[str, torch.Tensor] = {}
    for first in range(cached, 200, chunk):
        length = min(chunk, 200 - first)
        batch = SimpleNamespace(
            req_ids=["a"],
            idx_mapping_np=np.array([2]),
            num_computed_prefill_tokens_np=np.array([first]),
            num_scheduled_tokens=np.array([length]),
            prefill_len_np=np.array([200]),
            query_start_loc_np=np.array([0, length]),
        )
        lengths = np.array([0, 0, 200, 0])
        result |= worker.compute_prompt_token_id_logprobs(
            lambda states: states @ head, hidden[first : first + length], batch, lengths
        )
    if cached > start:
        assert not result  # the engine sends the text again, and reads no cache
    else:
        expected = (hidden @ head)[torch.arange(start, 199), torch.arange(start + 1, 200)]
        torch.testing.assert_close(result["a"][:, 0], expected)
