"""LoRA adapters as models: merged with their base, once, and then like any other checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlt_data.engines import find_checkpoint, models, open_model
from rlt_data.errors import ModelError
from rlt_data.settings import ModelSettings
from tests.conftest import Rlt, write_jsonl

peft = pytest.importorskip("peft", reason="needs the extra train")
Tiny = Callable[..., Path]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def base(tiny: Tiny, tmp_path: Path) -> Path:
    """A base model in bfloat16, as most are published."""
    folder = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(tiny(), dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny()).save_pretrained(folder)
    return folder


def adapter_of(base: Path, folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return folder


def weights(path: Path) -> str:
    return open_model(str(path), ModelSettings()).identity.weights


def test_an_adapter_runs_as_its_base_with_its_changes(tiny: Tiny, base: Path, tmp_path: Path) -> None:
    adapter = adapter_of(tiny(), tmp_path / "adapter")
    merged = find_checkpoint(str(adapter))
    expected = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny()), adapter)
    ids = torch.arange(1, 40)[None]
    with torch.no_grad():
        logits, own = expected(ids).logits, AutoModelForCausalLM.from_pretrained(merged.folder)(ids).logits
        assert torch.allclose(own, logits, atol=1e-3)
        with expected.disable_adapter():
            assert not torch.allclose(expected(ids).logits, logits, atol=1e-1)
    assert find_checkpoint(str(adapter)) == merged and merged.name == str(adapter)
    # A killed process leaves an unfinished folder, which the next one replaces.
    merged.folder.rename(unfinished := merged.folder.with_name(f".{merged.folder.name}.unfinished"))
    (unfinished / "half.safetensors").write_text("")
    assert find_checkpoint(str(adapter)) == merged and not (merged.folder / "half.safetensors").exists()
    assert not unfinished.exists()
    tokenizer: Any = open_model(str(adapter), ModelSettings()).tokenizer
    assert tokenizer.encode("17 * 3") == AutoTokenizer.from_pretrained(tiny()).encode("17 * 3")
    halved = find_checkpoint(str(adapter_of(base, tmp_path / "of-bfloat16")))
    assert AutoModelForCausalLM.from_pretrained(halved.folder).dtype == torch.bfloat16


def test_its_fingerprint_covers_base_and_adapter(base: Path, tmp_path: Path) -> None:
    first = adapter_of(base, tmp_path / "first")
    other = adapter_of(base, tmp_path / "other", seed=1)
    copy = shutil.copytree(first, tmp_path / "copy")
    assert weights(copy) == weights(first) != weights(other)
    assert len({weights(folder) for folder in (base, first, other)}) == 3
    moved = tmp_path / "moved"
    model = AutoModelForCausalLM.from_pretrained(base)
    model.lm_head.weight.data[0] += 1
    model.save_pretrained(moved)
    AutoTokenizer.from_pretrained(base).save_pretrained(moved)
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(moved)}))
    assert weights(copy) != weights(first)


def test_a_students_adapters_can_generate_score_and_learn_more(rlt: Rlt, base: Path, problems: Path) -> None:
    turns = [{"role": "user", "content": "3?"}, {"role": "assistant", "content": "It is 3."}]
    data = write_jsonl(Path("rows.jsonl"), [{"messages": turns}] * 4)
    train: list[Any] = ["train-student", "--in", data, "--device", "cpu", "--batch-size", 2, "--epochs", 1]
    rlt(*train, "--model", "base", "--lora-rank", 2, "--learning-rate", 1e-2, "--out", "lora")
    assert json.loads(Path("lora/adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    generate = "generate", "--in", problems, "--n", 1, "--max-tokens", 8, "--device", "cpu"
    rlt(*generate, "--teacher", "lora", "--out", "run")
    rlt("score", "--in", "run", "--student", "lora", "--device", "cpu")
    rlt(*train, "--model", "lora", "--out", "more")
    assert Path("more/model.safetensors").is_file()


def test_an_adapter_that_cannot_be_merged_is_refused_in_one_line(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def error_of(folder: Path) -> str:
        with pytest.raises(ModelError) as error:
            find_checkpoint(str(folder))
        assert "\n" not in str(error.value)
        return str(error.value)

    adapter = adapter_of(base, tmp_path / "adapter", seed=2)
    with monkeypatch.context() as patch:
        patch.setattr(models, "find_spec", lambda name: None)
        assert "pip install 'rlt-data[train]'" in error_of(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_model.safetensors").write_bytes(b"half a file")
    assert str(base) in error_of(adapter)
    (adapter / "adapter_model.safetensors").unlink()
    assert "no adapter_model.safetensors" in error_of(adapter)
    for damaged, cause in {
        json.dumps(config | {"base_model_name_or_path": str(adapter)}): "base_model_name_or_path is this folder",
        json.dumps(config | {"base_model_name_or_path": "nowhere"}): "base model",
        json.dumps(config | {"base_model_name_or_path": None}): "adapter_config.json names no base model",
        "{": "adapter_config.json names no base model",
    }.items():
        (adapter / "adapter_model.safetensors").write_bytes(b"")
        (adapter / "adapter_config.json").write_text(damaged)
        assert cause in error_of(adapter)


def test_an_adapter_of_another_model_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    adapter = adapter_of(tiny(), tmp_path / "adapter", seed=3)
    config = json.loads((adapter / "adapter_config.json").read_text())
    other = json.dumps(config | {"base_model_name_or_path": str(tiny("wide"))})
    (adapter / "adapter_config.json").write_text(other)
    with pytest.raises(ModelError, match=r"size mismatch for .*lora_A"):
        find_checkpoint(str(adapter))
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    deeper = {key.replace(".1.", ".9."): value for key, value in load_file(adapter / WEIGHTS).items()}
    save_file(deeper, adapter / WEIGHTS)
    with pytest.raises(ModelError, match=r"its modules are not those of the model: .*layers\.9\."):
        find_checkpoint(str(adapter))
