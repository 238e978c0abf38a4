"""Finding models, telling them apart, and refusing unusable ones."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BitsAndBytesConfig,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2Model,
)

from rlt_data.engines import Checkpoint, choose, find_checkpoint, open_model
from rlt_data.engines import models as models_module
from rlt_data.engines.config import pick_dtype
from rlt_data.engines.protocol import FullKL, SequenceLogprobs, SequenceRequest
from rlt_data.engines.server.completions import find_end_tokens
from rlt_data.engines.transformers import TransformersEngine
from rlt_data.engines.transformers.model import CausalModel
from rlt_data.engines.vllm import loading
from rlt_data.engines.watchdog import Heartbeat
from rlt_data.errors import ModelError, SettingsError
from rlt_data.settings import ModelSettings

SMALL: dict[str, Any] = {
    "vocab_size": 403,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "pad_token_id": 0,
}


def _save(model: Any, tokenizer_of: Path, folder: Path) -> str:
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_of).save_pretrained(folder)
    return str(folder)


def identity(path: Path | str) -> Any:
    return open_model(str(path), ModelSettings()).identity


def test_a_copy_has_the_same_fingerprint_and_a_change_another(tiny: Callable[..., Path], tmp_path: Path) -> None:
    original = identity(tiny())
    copy = tmp_path / "copy"
    shutil.copytree(tiny(), copy)
    assert identity(copy).fingerprint == original.fingerprint and identity(copy).name != original.name
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "transformers_version": "0", "use_cache": False}))
    assert identity(copy).fingerprint == original.fingerprint
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    assert identity(copy).weights != original.weights
    assert identity(tiny("chat", 1)).weights != original.weights
    assert identity(tiny("chat", 1)).tokenizer == original.tokenizer != identity(tiny("base")).tokenizer


def test_changed_weights_are_noticed_though_the_hash_is_remembered(tiny: Callable[..., Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny(), copy)
    before = identity(copy).weights
    assert identity(copy).weights == before
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert identity(copy).weights != before


@pytest.mark.parametrize(
    "make",
    [
        lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=16, final_logit_softcapping=5.0, sliding_window=8)),
        lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.3)),
        lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=3.0)),
        lambda: PhiForCausalLM(PhiConfig(**SMALL)),
    ],
    ids=["soft cap", "logit scale", "logits scaling", "bias"],
)
def test_heads_that_do_more_than_a_product(make: Callable[[], Any], tiny: Callable[..., Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = make()
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        torch.nn.init.normal_(model.get_output_embeddings().bias)
    engine = open_model(_save(model, tiny(), tmp_path / "model"), ModelSettings()).engine
    assert isinstance(engine, TransformersEngine)
    ids = torch.randint(5, 400, (1, 40))
    with torch.no_grad():
        expected = (model.eval()(ids).logits[0] / 0.7).log_softmax(-1)
    hidden = engine.model.hidden(ids)[0]
    got = engine.model.token_logprobs(hidden, torch.arange(40), 0.7)
    assert torch.allclose(got, expected[torch.arange(40), torch.arange(40)], atol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Qwen2Model(Qwen2Config(**SMALL, tie_word_embeddings=False)), "the checkpoint lacks lm_head"),
        (lambda: BertModel(BertConfig(**SMALL)), "not a causal language model with a head"),
        (lambda: MambaForCausalLM(MambaConfig(vocab_size=403, hidden_size=32, num_hidden_layers=1, state_size=4)),
         "layers; the transformers engine"),
    ],
    ids=["no head", "encoder", "recurrent"],
)  # fmt: skip
def test_models_that_will_not_do(
    make: Callable[[], Any], message: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    model = open_model(_save(make(), tiny(), tmp_path / "model"), ModelSettings())
    with pytest.raises(ModelError, match=message):
        model.engine  # noqa: B018


def test_names_that_are_no_models(tiny: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "hollow").mkdir()
    (tmp_path / "file.bin").write_text("x")
    (tmp_path / "fake.gguf").write_bytes(b"GGUF nonsense")
    weightless = tmp_path / "weightless"
    shutil.copytree(tiny(), weightless, ignore=shutil.ignore_patterns("*.safetensors"))
    nonsense = tmp_path / "nonsense"
    shutil.copytree(tiny(), nonsense)
    (nonsense / "config.json").write_text('{"model_type": "no-such-type"}')
    for name, message in {
        "hollow": "the folder holds no model",
        "file.bin": "not a model; takes a folder, a .gguf file, or a Hub id",
        "fake.gguf": "the GGUF file cannot be converted",
        "qwen": "no such model",
        "./no/such": "no such model",
        "nobody/nothing": "no such folder, and the Hub did not give the model",
        "nano": "the miniature models are nano-student, nano-teacher-warm, nano-teacher",
        "weightless": "the folder holds no weights",
        "nonsense": "the configuration cannot be loaded",
    }.items():
        with pytest.raises(ModelError, match=message) as error:
            open_model(str(tmp_path / name) if (tmp_path / name).exists() else name, ModelSettings())
        assert "\n" not in str(error.value)


def test_code_in_a_checkpoint_does_not_run_unless_asked_for(tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "coded"
    shutil.copytree(tiny(), folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "coded", "auto_map": {"AutoConfig": "coded.CodedConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "coded.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
        "from transformers import Qwen2Config\nclass CodedConfig(Qwen2Config):\n    model_type = 'coded'\n"
    )
    with pytest.raises(ModelError):
        open_model(str(folder), ModelSettings())
    assert not (tmp_path / "ran").exists()


def test_devices_and_types() -> None:
    with pytest.raises(SettingsError, match="--device: 'nothing' cannot be used"):
        open_device("nothing")
    if not torch.cuda.is_available():
        with pytest.raises(SettingsError, match="--device: 'cuda' cannot be used"):
            open_device("cuda")
    assert open_device("cpu").type == "cpu"


def open_device(name: str) -> torch.device:
    from rlt_data.engines.config import pick_device

    return pick_device(name)


def test_auto_keeps_the_type_of_the_checkpoint_unless_a_cpu_would_emulate_it(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = Qwen2Config(**SMALL, dtype=torch.bfloat16)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert pick_dtype("auto", stored, torch.device("cpu")) == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert pick_dtype("auto", stored, torch.device("cpu")) == torch.float32
    assert pick_dtype("auto", stored, torch.device("cuda")) == torch.bfloat16
    assert pick_dtype("float16", stored, torch.device("cpu")) == torch.float16
    assert pick_dtype("auto", Qwen2Config(**SMALL), torch.device("cuda")) == torch.float32


def test_a_gguf_file_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = pytest.importorskip("gguf")
    monkeypatch.setenv("RLT_DATA_CACHE", str(tmp_path / "cache"))
    path = _write_gguf(gguf, tmp_path / "small.gguf")
    first = find_checkpoint(str(path))
    stamp = (first.folder / "model.safetensors").stat().st_mtime_ns
    assert find_checkpoint(str(path)).folder == first.folder
    assert (first.folder / "model.safetensors").stat().st_mtime_ns == stamp
    model = AutoModelForCausalLM.from_pretrained(first.folder)
    assert model.config.hidden_size == 32 and model.dtype == torch.bfloat16
    assert open_model(str(path), ModelSettings()).engine.context_length == 64


def test_a_killed_conversion_continues_and_leaves_no_half_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = pytest.importorskip("gguf")
    monkeypatch.setenv("RLT_DATA_CACHE", str(tmp_path / "cache"))
    notices: list[str] = []
    monkeypatch.setattr(models_module.logger, "info", lambda text, *values: notices.append(text % values))
    path = _write_gguf(gguf, tmp_path / "small.gguf")
    script = (
        "import os, signal, sys\nfrom transformers import LlamaForCausalLM\n"
        "from rlt_data.engines import find_checkpoint\nsave = LlamaForCausalLM.save_pretrained\n"
        "def die(model, folder):\n    save(model, folder)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "LlamaForCausalLM.save_pretrained = die\nfind_checkpoint(sys.argv[1])\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    models = tmp_path / "cache" / "models"
    assert list(models.rglob("model.safetensors")) and not list(models.glob("small-*/"))

    tokenizers = []
    save = models_module._save_tokenizer
    monkeypatch.setattr(models_module, "_save_tokenizer", lambda *paths: (tokenizers.append(paths), save(*paths)))
    folder = find_checkpoint(str(path)).folder
    assert not tokenizers  # the finished one is kept
    converting, loading = notices
    assert "continu" in converting and str(folder) in converting and " MB" in converting and "loading" in loading
    assert [file.name for file in models.iterdir() if file.suffix != ".lock"] == [folder.name]
    assert open_model(str(path), ModelSettings()).engine.context_length == 64

    shutil.rmtree(folder)
    assert find_checkpoint(str(path)).folder == folder
    assert tokenizers and "continu" not in notices[2]


def test_a_tokenizer_that_was_saved_in_part_is_saved_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = pytest.importorskip("gguf")
    monkeypatch.setenv("RLT_DATA_CACHE", str(tmp_path / "cache"))
    path = _write_gguf(gguf, tmp_path / "small.gguf")

    def interrupted(_: Path, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{")
        (folder / "rest.json").write_text("{")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(models_module, "_save_tokenizer", interrupted)
        find_checkpoint(str(path))
    folder = find_checkpoint(str(path)).folder
    assert AutoTokenizer.from_pretrained(folder).vocab_size > 250 and not (folder / "rest.json").exists()


def _write_gguf(gguf: Any, path: Path) -> Path:
    """Write a Llama of random weights as GGUF."""
    writer = gguf.GGUFWriter(path, "llama")
    hidden, layers, heads, inner = 32, 1, 2, 64
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581a", "b"]
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([2, 3, 3, *([6] * 256), 1, 1])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    torch.manual_seed(0)
    shapes = {
        "token_embd.weight": (len(tokens), hidden),
        "output_norm.weight": (hidden,),
        "output.weight": (len(tokens), hidden),
        "blk.0.attn_norm.weight": (hidden,),
        "blk.0.ffn_norm.weight": (hidden,),
        "blk.0.attn_q.weight": (hidden, hidden),
        "blk.0.attn_k.weight": (hidden, hidden),
        "blk.0.attn_v.weight": (hidden, hidden),
        "blk.0.attn_output.weight": (hidden, hidden),
        "blk.0.ffn_gate.weight": (inner, hidden),
        "blk.0.ffn_up.weight": (inner, hidden),
        "blk.0.ffn_down.weight": (hidden, inner),
    }
    for name, shape in shapes.items():
        writer.add_tensor(name, torch.randn(shape).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "[]"),
        ("config.json", DEEP),
        ("config.json", {"num_attention_heads": "x"}),
        ("config.json", {"hidden_size": 7}),
        ("config.json", {"layer_types": [[1]]}),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", DEEP),
        ("tokenizer.json", {"model": {"a": 1}}),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", DEEP),
        ("tokenizer_config.json", {"model_max_length": "x"}),
        ("tokenizer_config.json", {"eos_token": [1]}),
        ("tokenizer_config.json", {"chat_template": "{{ 1 // 0 }}"}),
        ("generation_config.json", DEEP),
    ],
    ids=lambda value: DEEP[:5] if value == DEEP else None,
)
def test_damaged_files_are_refused_in_one_line(
    tiny: Callable[..., Path], tmp_path: Path, file: str, content: str | dict[str, Any]
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny(), folder)
    if isinstance(content, dict):
        content = json.dumps(json.loads((folder / file).read_text()) | content)
    (folder / file).write_text(content)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(ModelError) as error:
        open_model(str(folder), ModelSettings()).load()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ends", [[[]], {"a": 1}, ["x", None], "x"])
def test_end_tokens_that_are_none_are_passed_over(tiny: Callable[..., Path], tmp_path: Path, ends: Any) -> None:
    folder = tmp_path / "endless"
    shutil.copytree(tiny(), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    tokenizer = open_model(str(folder), ModelSettings()).tokenizer
    assert find_end_tokens(folder, tokenizer) == {config["eos_token_id"]}
    try:
        model = CausalModel.load(find_checkpoint(str(folder)), ModelSettings())
    except ModelError as error:  # later versions of Transformers refuse some values
        assert "\n" not in str(error)
    else:
        assert model.end_tokens <= {config["eos_token_id"]}


def test_a_model_that_does_not_fit_into_memory(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 28.00 GiB.\nSee the documentation")

    monkeypatch.setattr(PreTrainedModel, "to", full)
    model = open_model(str(tiny()), ModelSettings())
    with pytest.raises(ModelError, match=r"cannot be run on cpu: CUDA out of memory. Tried to allocate 28.00 GiB.$"):
        model.load()


def test_a_quantized_checkpoint_runs(tiny: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the extra bitsandbytes")
    folder = shutil.copytree(tiny("wide"), tmp_path / "quantized")
    (folder / "model.safetensors").unlink()
    quantization = BitsAndBytesConfig(load_in_4bit=True)  # type: ignore[no-untyped-call]
    AutoModelForCausalLM.from_pretrained(tiny("wide"), quantization_config=quantization).save_pretrained(folder)
    model = open_model(str(folder), ModelSettings())
    assert model.weight_bytes == (folder / "model.safetensors").stat().st_size
    [result] = model.logprobs([[[SequenceRequest("a", np.arange(9, dtype=np.int32), np.arange(1, 9))]]], 1.0)
    assert isinstance(result, SequenceLogprobs) and (result.logprobs < 0).all()


def test_comparing_distributions_is_something_that_some_engines_can(tiny: Callable[..., Path]) -> None:
    model, other = (open_model(str(tiny()), ModelSettings()) for _ in range(2))
    assert isinstance(model.engine, FullKL)

    class Plain:
        """An engine that gives log-probs of single tokens only, as vLLM's and servers do."""

        context_length, heartbeat = 100, Heartbeat()
        generate = logprobs = log_tail = close = lambda *_: None

    other.engine = Plain()  # type: ignore[assignment]
    for one, two in ((model, other), (other, model)):
        with pytest.raises(ModelError, match="the full KL needs"):
            list(one.full_kl([], two, [], 0.7))


def test_the_share_of_memory_reaches_the_engine(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(loading, "Pool", lambda _, arguments, *__, **more: seen.append((arguments[1:], more["logs"])))
    monkeypatch.setattr(choose, "installed_version", lambda: "0.33.0")
    monkeypatch.setattr(choose, "is_for_cpus", lambda: True)
    for share, expected in ((1.0, 0.8), (0.5, 0.4)):
        settings = ModelSettings(engine="vllm", gpu_memory=0.8)
        model = open_model(str(tiny()), settings, scoring=True)
        model.load(Path("logs"), memory_share=share)
        model.load(memory_share=0.1)  # it is loaded
        own = settings.model_copy(update={"gpu_memory": expected})
        assert seen.pop() == ((own, True), Path("logs")) and not seen


def test_the_public_name_of_a_model_has_no_local_path(tmp_path: Path) -> None:
    cached = tmp_path / "hub" / "models--org--tiny" / "snapshots" / "0123abc"
    cached.mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    names = {
        "org/tiny": "org/tiny",
        "nano-teacher": "nano-teacher",
        "mine": "mine",
        "hub/../mine/": "mine",
        str(tmp_path / "mine"): "mine",
        str(cached): "org/tiny",
    }
    assert {name: Checkpoint(name, tmp_path).public_name for name in names} == names
