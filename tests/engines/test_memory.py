"""Memory of models on GPUs, estimated on machines without one, compared with arithmetic by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rlt_data.engines import open_model
from rlt_data.engines.config import cache_bytes
from rlt_data.engines.memory import ModelMemory, estimate_memory, fitting_texts, model_memory
from rlt_data.settings import ModelSettings, ScoreSettings
from rlt_data.steps import dry_run

Tiny = Callable[..., Path]
GIB = 2**30


_QWEN = transformers.Qwen2Config(num_hidden_layers=28, hidden_size=3584, num_attention_heads=28, num_key_value_heads=4)
_GEMMA = transformers.Gemma3TextConfig(num_hidden_layers=3, layer_types=[*["sliding_attention"] * 2, "full_attention"])


@pytest.mark.parametrize(
    ("config", "tokens", "gpus", "expected"),
    [
        # Qwen2.5-7B: 28 layers with 4 heads of 128; keys and values in two bytes each.
        pytest.param(_QWEN, 10, 1, 10 * 28 * 2 * 4 * 128 * 2, id="grouped heads"),
        pytest.param(_QWEN, 10, 8, 10 * 28 * 2 * 1 * 128 * 2, id="more GPUs than heads"),
        # Mistral-7B-v0.1: every layer has the window, and the configuration has no kinds of layers.
        pytest.param(transformers.MistralConfig(), 32768, 1, 4096 * 32 * 2 * 8 * 128 * 2, id="windows"),
        # Two layers with windows and a complete one.
        pytest.param(_GEMMA, 5000, 1, (2 * 4096 + 5000) * 2 * 4 * 256 * 2, id="some windows"),
        # Llama 4 Scout: three of four layers attend to chunks of 8,192 tokens.
        pytest.param(
            transformers.Llama4TextConfig(), 10000, 1, (36 * 8192 + 12 * 10000) * 2 * 8 * 128 * 2, id="chunks"
        ),
        # DeepSeek-V3: 512 latent values and 64 of the rotary embedding, on each of the GPUs.
        pytest.param(transformers.DeepseekV3Config(), 100, 8, 100 * 61 * (512 + 64) * 2, id="latent"),
        # Qwen3-Next: attention in 12 of 48 layers.
        pytest.param(transformers.Qwen3NextConfig(), 100, 1, 100 * 12 * 2 * 2 * 256 * 2, id="recurrent layers"),
        pytest.param(transformers.MambaConfig(), 100, 1, 0, id="no attention"),
    ],
)
def test_keys_and_values(config: Any, tokens: int, gpus: int, expected: int) -> None:
    assert cache_bytes(config, tokens, 2, gpus=gpus) == expected


@pytest.fixture
def no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)


@pytest.mark.usefixtures("no_bfloat16")
def test_weights_are_those_on_a_gpu_though_this_cpu_would_use_float32(tiny: Tiny, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny(), tmp_path / "half")
    config = json.loads((folder / "config.json").read_text())
    stored = (folder / "model.safetensors").stat().st_size

    def memory(**settings: Any) -> ModelMemory:
        model = open_model(str(folder), ModelSettings(**settings))
        return model_memory(model, 100)

    assert (memory().dtype, memory().weights_gib * GIB) == ("float32", stored)
    assert memory(dtype="bfloat16").weights_gib * GIB == stored / 2
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    assert open_model(str(folder), ModelSettings()).identity.dtype == "float32"
    assert (memory().dtype, memory().weights_gib * GIB) == ("bfloat16", stored)
    assert memory().cache_gib * GIB == cache_bytes(transformers.AutoConfig.from_pretrained(folder), 100, 2)
    quantized = config | {"dtype": "bfloat16", "quantization_config": {"quant_method": "fp8"}}
    (folder / "config.json").write_text(json.dumps(quantized))
    assert memory(dtype="float32").weights_gib * GIB == stored  # --dtype does not change quantized weights


def test_activations_of_experts_count_for_each_expert_of_a_token(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tiny(), tmp_path / "experts")
    model = open_model(str(folder), ModelSettings(batch_tokens=1000, dtype="bfloat16"))
    config = json.loads((folder / "config.json").read_text())

    def inner(**changes: int) -> float:
        (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 0} | changes))
        return model_memory(model, 100).pass_gib * GIB / (1000 * 2) - 8 * config["hidden_size"]

    assert inner(intermediate_size=64) == 3 * 64
    assert inner(intermediate_size=64, num_experts_per_tok=2) == 3 * 128  # Mixtral
    assert inner(intermediate_size=64, num_experts_per_tok=8, moe_intermediate_size=16) == 3 * 128  # Qwen3-MoE


def test_several_gpus_share_weights_keys_and_the_inner_activations_of_the_mlp() -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4}
    config = transformers.Qwen2Config(vocab_size=1000, num_hidden_layers=2, **sizes)

    def memory(gpus: int) -> ModelMemory:
        settings = ModelSettings(engine="vllm", batch_tokens=100, batch_size=10, tensor_parallel=gpus)
        return estimate_memory("", config, settings, 4e6, torch.bfloat16, 50, scoring=False)

    one, four = memory(1), memory(4)
    assert four.weights_gib == one.weights_gib / 4 and four.cache_gib == one.cache_gib / 4
    assert one.pass_gib - four.pass_gib == 100 * 3 * 512 * 2 * 3 / 4 / GIB  # logits and residual stream are complete


def test_models_that_share_a_gpu_have_equal_parts_of_what_their_weights_leave() -> None:
    two = [ModelMemory("", "", 10.0, 0.5, 1.0), ModelMemory("", "", 4.0, 1.5, 1.0)]
    assert fitting_texts(two, 24.0) == 2  # 10 GiB are left; 4 of the second model's 5 are for its texts
    assert fitting_texts(two[:1], 24.0) == 26
    assert fitting_texts(two, 16.0) == fitting_texts(two, 1.0) == 0


def test_models_on_a_cluster_share_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run, "_gpu_sizes", lambda: (20,))
    two = [ModelMemory("", "", 10.0, 0.5, 1.0), ModelMemory("", "", 8.0, 0.5, 1.0)]
    here, cluster = (ScoreSettings(input="r", student="s", engines=e, ray=r) for e, r in ((None, None), (3, "auto")))
    assert dry_run._fits(two, here) == {20: 0} and dry_run._fits(two, cluster) == {20: 14}
    assert dry_run._fits([ModelMemory("", "", 10.0, 0.0, 1.0)], here) == {}  # no keys and values
    assert (dry_run._gpus(here, 2), dry_run._gpus(cluster, 2)) == (1, 6)
