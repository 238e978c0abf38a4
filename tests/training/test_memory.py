"""The memory that a plan estimates is what tiny models need on a CPU."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Qwen2Config,
    Qwen3MoeConfig,
    TrainerCallback,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from benchmarks.recipes import MIDDLE
from rlt_data.engines.config import cache_bytes
from rlt_data.settings import TrainStudentSettings, TrainTeacherSettings
from rlt_data.training.activations import count_activations
from rlt_data.training.memory import Estimator, Machine, Memory, common_machines, this_machine
from rlt_data.training.sft import train_student
from rlt_data.training.teacher import train_teacher
from tests.conftest import Rlt, write_jsonl
from tests.training.processes import variables_of

pytest.importorskip("trl", reason="needs the extra train")
Tiny = Callable[..., Path]
needs_bitsandbytes = pytest.mark.skipif(not find_spec("bitsandbytes"), reason="needs the extra bitsandbytes")
GIB = 2**30
_GPUS = Path(__file__).parents[2] / "docs" / "gpus.md"


class Measured:
    """Bytes that a training step really uses, and the size of its micro-batch."""

    saved = gradients = optimizer = weights = reference = 0
    shape = (0, 0)


def nbytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


@contextmanager
def saved_bytes(model: Any) -> Iterator[list[int]]:
    """Count tensors saved for the backward pass, each storage once, without the model's own."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    storages: dict[int, torch.UntypedStorage] = {}
    total = [0]

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages.setdefault(storage.data_ptr(), storage)
        return tensor

    def keep(_layer: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        """Count the layers' keyword arguments, such as the mask, which checkpointing keeps without saving them."""
        for tensor in torch.utils._pytree.tree_leaves(kwargs):
            if isinstance(tensor, torch.Tensor):
                save(tensor)

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        yield total
    for hook in hooks:
        hook.remove()
    total[0] = sum(storage.nbytes() for storage in storages.values())


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    """Measure the trainings of a test: the largest micro-batch, and the state after the first step."""
    from transformers import Trainer
    from trl import GRPOTrainer, SFTTrainer

    result = Measured()

    class Measure(TrainerCallback):
        def __init__(self, trainer: Any) -> None:
            self.trainer = trainer

        def on_optimizer_step(self, *_: Any, **__: Any) -> None:
            parameters = list(self.trainer.model.parameters())
            result.gradients = nbytes(p.grad for p in parameters if p.grad is not None)
            result.weights = nbytes(p for name, p in self.trainer.model.named_parameters() if ".ref." not in name)
            state = self.trainer.optimizer.state.values()
            result.optimizer = nbytes(v for entry in state for v in entry.values() if torch.is_tensor(v) and v.dim())
            reference = getattr(self.trainer, "ref_model", None)
            adapter = [p for name, p in self.trainer.model.named_parameters() if ".ref." in name]
            result.reference = nbytes(reference.parameters() if reference is not None else adapter)

    def measuring(cls: Any) -> None:
        compute_loss, train = cls.compute_loss, Trainer.train

        def loss(self: Any, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
            ids = [inputs[name] for name in ("input_ids", "prompt_ids", "completion_ids") if name in inputs]
            with saved_bytes(model) as total:
                output = compute_loss(self, model, inputs, *args, **options)
            if total[0] > result.saved:
                result.saved, result.shape = total[0], (len(ids[0]), sum(each.shape[1] for each in ids))
            return output

        def start(self: Any, *args: Any, **options: Any) -> Any:
            self.add_callback(Measure(self))
            return train(self, *args, **options)

        monkeypatch.setattr(cls, "compute_loss", loss)
        monkeypatch.setattr(cls, "train", start)

    for cls in (GRPOTrainer, SFTTrainer):
        measuring(cls)
    return result


def compare(measured: Measured, settings: Any) -> None:
    """Compare a training's estimate with what it used."""
    rows, length = measured.shape
    assert rows == settings.micro_batch_size
    config = AutoConfig.from_pretrained(settings.model)
    memory = Estimator(config, length).memory(settings, this_machine(settings))
    activations = count_activations(config, settings, length)
    assert activations is not None
    assert activations.saved == pytest.approx(measured.saved, rel=0.15)
    assert memory.weights == pytest.approx(measured.weights, rel=0.05)
    assert memory.gradients == pytest.approx(measured.gradients, rel=0.01)
    assert memory.optimizer == pytest.approx(measured.optimizer, rel=0.05)
    assert memory.reference == pytest.approx(measured.reference, rel=0.01)


@pytest.fixture
def texts(tmp_path: Path) -> str:
    texts = [f"It is {n}, because {n} times {n} is what we want. " * (4 + n % 3) for n in range(8)]
    rows = [{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": t}]} for t in texts]
    return str(write_jsonl(tmp_path / "rows.jsonl", rows))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation_checkpointing": True},
        {"dtype": "bfloat16"},
        {"micro_batch_size": 1, "packing": True, "max_length": 600},
        {"lora_rank": 4},
        {"lora_rank": 4, "activation_checkpointing": True, "dtype": "bfloat16"},
        {"kind": "sliding", "activation_checkpointing": True},
        pytest.param({"kind": "wide", "optimizer": "adamw_8bit"}, marks=needs_bitsandbytes),
        pytest.param({"kind": "wide", "lora_rank": 4, "load_in_4bit": True}, marks=needs_bitsandbytes),
    ],
    ids=str,
)
def test_a_fine_tuning_needs_what_is_estimated(
    tiny: Tiny, texts: str, measured: Measured, options: dict[str, Any]
) -> None:
    model = str(tiny(options.pop("kind", "chat")))
    sizes = {"batch_size": 8, "micro_batch_size": 4, "max_steps": 1, "device": "cpu"}
    paths = {"model": model, "in": texts, "out": "out"}
    settings = TrainStudentSettings(**({"activation_checkpointing": False} | sizes | paths | options))
    train_student(settings)
    compare(measured, settings)


EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}


@pytest.mark.parametrize(
    "kind",
    ["llama", "qwen3_moe", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("gemma2", "phi3", "gpt_oss"))],
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation_checkpointing": True, "micro_batch_size": 1},
        pytest.param(
            {"lora_rank": 4, "load_in_4bit": True, "activation_checkpointing": True, "vocab_size": 3000},
            marks=needs_bitsandbytes,
        ),
        pytest.param({"optimizer": "adamw_8bit", "tie_word_embeddings": True}, marks=needs_bitsandbytes),
    ],
    ids=str,
)
def test_other_architectures_need_what_is_estimated(
    tiny: Tiny, tmp_path: Path, texts: str, measured: Measured, kind: str, options: dict[str, Any]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny())
    sizes = {"hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 2, "head_dim": 32, "pad_token_id": 0}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192}
    names = {"vocab_size", "tie_word_embeddings"} & options.keys()
    own = {"vocab_size": len(tokenizer), "tie_word_embeddings": False} | {name: options.pop(name) for name in names}
    config = AutoConfig.for_model(kind, **sizes, **own, **(EXPERTS if kind in ("qwen3_moe", "gpt_oss") else {}))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / kind)
    tokenizer.save_pretrained(tmp_path / kind)
    fixed = {"batch_size": 4, "micro_batch_size": 4, "max_steps": 1, "device": "cpu", "in": texts, "out": "out"}
    fixed |= {"model": str(tmp_path / kind), "activation_checkpointing": False}
    settings = TrainStudentSettings(**(fixed | options))
    train_student(settings)
    compare(measured, settings)


@pytest.mark.parametrize(
    "options", [{}, {"activation_checkpointing": True}, {"lora_rank": 4}, {"beta": 0.0, "dtype": "bfloat16"}], ids=str
)
def test_a_policy_needs_what_is_estimated(
    tiny: Tiny, problems: Path, measured: Measured, options: dict[str, Any]
) -> None:
    sizes = {"steps": 1, "questions": 2, "group": 4, "micro_batch_size": 4, "held_out": 0, "max_tokens": 60}
    paths = {"model": str(tiny()), "student": str(tiny("chat", 1)), "in": str(problems), "out": "out", "device": "cpu"}
    settings = TrainTeacherSettings(**({"activation_checkpointing": False} | sizes | paths | options))
    train_teacher(settings)
    compare(measured, settings)


def test_one_layer_is_recomputed(tiny: Tiny) -> None:
    config = AutoConfig.from_pretrained(tiny())
    settings = TrainStudentSettings(model=str(tiny()), input="i", out="o", micro_batch_size=2, device="cpu")
    kept = count_activations(config, settings.model_copy(update={"activation_checkpointing": False}), 100)
    checkpointed = count_activations(config, settings, 100)
    assert kept and checkpointed and kept.recomputed == 0
    inner = kept.saved - checkpointed.saved  # of all layers, less the inputs of the layers
    assert inner / 2 < checkpointed.recomputed < 1.15 * inner / 2 + 2 * 100 * 4 * config.hidden_size


@pytest.mark.parametrize("lora", [0, 4])
def test_mixed_precision_is_counted(tiny: Tiny, lora: int) -> None:
    """On GPUs, Transformers trains under autocast; on a CPU, autocast casts the same operations."""
    from peft import get_peft_model

    from rlt_data.training.models import lora_config

    settings = TrainStudentSettings(
        model=str(tiny()), input="i", out="o", device="cpu", lora_rank=lora, activation_checkpointing=False
    )
    config = AutoConfig.from_pretrained(tiny())
    model: Any = AutoModelForCausalLM.from_pretrained(tiny())
    if lora:
        model = get_peft_model(model, lora_config(settings))
    base = model.get_base_model() if lora else model
    with saved_bytes(model) as total, torch.autocast("cpu", torch.bfloat16):
        base.train().base_model(input_ids=torch.zeros(1, 300, dtype=torch.int64), use_cache=False)
    counted = count_activations(config, settings, 300, autocast=True)
    assert counted is not None and counted.saved == pytest.approx(total[0], rel=0.15)


def test_plans_say_what_fits_and_what_would() -> None:
    # As many parameters as Qwen2.5-7B, in four layers.
    sizes = {"vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 152_000, "num_hidden_layers": 4}
    wide = Qwen2Config(**sizes, num_attention_heads=28, num_key_value_heads=4, dtype="bfloat16")
    base: dict[str, Any] = {"model": "m", "student": "s", "in": "i", "out": "o", "dry_run": True}
    estimator, settings = Estimator(wide, 1000, int(14.2 * GIB)), TrainTeacherSettings(**base)
    machines = common_machines(settings)
    small, one, eight = (estimator.with_remedies(settings, machine) for machine in machines)
    assert small.fits is one.fits is False and eight.fits
    assert one.weights == pytest.approx(4 * 7.6e9, rel=0.02) and eight.optimizer == pytest.approx(7.6e9, rel=0.02)
    assert one.student == eight.student == int(14.2 * GIB) and one.total > 128 * GIB
    assert re.search(r"1 x 80 GB: does not fit.* --lora-rank 16.*\d such GPUs with FSDP2$", one.verdict)
    assert "--load-in-4bit" in small.verdict
    for memory, machine in zip((small, one), machines, strict=False):
        for remedy in memory.remedies:
            flags = [] if "GPUs" in remedy else [flag.split() for flag in remedy.split("--")[1:]]
            changes = {name.replace("-", "_"): value[0] if value else True for name, *value in flags}
            assert not changes or estimator.memory(TrainTeacherSettings(**base, **changes), machine).fits
    longer = Estimator(wide, 3000, int(14.2 * GIB))
    together = "--student-device offload --lora-rank 16 --load-in-4bit"
    assert together in longer.with_remedies(settings, machines[0]).verdict
    with_vllm = settings.model_copy(update={"vllm": "colocate"})
    assert f"--vllm none {together}" in longer.with_remedies(with_vllm, machines[0]).verdict
    few = replace(machines[2], gpus=2)
    assert "fsdp2-offload.yaml and 144 GiB of main memory" in estimator.with_remedies(settings, few).verdict
    assert "smaller model" in Estimator(wide, 100_000).with_remedies(settings, machines[0]).verdict


def test_shards_in_main_memory_are_recognized(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TrainStudentSettings(model="m", input="i", out="o", device="cpu")
    for name in ("fsdp2", "fsdp2-offload"):
        for variable, value in variables_of(name).items():
            monkeypatch.setenv(variable, value)
        machine = this_machine(settings)
        assert machine.sharded and machine.offload == (name == "fsdp2-offload")


def test_parts_follow_the_settings() -> None:
    one, eight = Machine("one", 1, 80 * GIB), Machine("eight", 8, 80 * GIB, sharded=True)

    def memory(machine: Machine = one, **options: Any) -> Any:
        settings = TrainTeacherSettings(model="m", student="s", input="i", out="o", **options)
        return estimator.memory(settings, machine)

    config = Qwen2Config(vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=2, dtype="bfloat16")
    estimator = Estimator(config, 64, 1000)
    plain, half = memory(), memory(dtype="bfloat16")
    assert plain.weights == plain.gradients == plain.reference == plain.optimizer / 2 == 2 * half.weights
    assert memory(beta=0.0).reference == 0 and memory(optimizer="paged_adamw").optimizer == 0
    assert memory(vllm="colocate", vllm_memory=0.25).vllm == 20 * GIB
    assert memory(student_device="cpu").student == memory(student_device="cuda:1").student == 0
    offloaded = memory(student_device="offload")
    assert offloaded.student == 1000 and offloaded.total == plain.total - 1000  # smaller than the activations
    adapters = memory(lora_rank=2)
    assert half.weights < adapters.weights < 1.2 * half.weights and adapters.reference == adapters.gradients
    assert memory(lora_rank=2, sync_steps=0).reference == 0
    assert memory(lora_rank=2, load_in_4bit=True).weights < 0.8 * adapters.weights
    copies = replace(one, gpus=4)
    assert memory(copies).gradients == 2 * plain.gradients and memory(copies).weights == plain.weights
    sharded, whole = memory(eight), plain.weights // 2  # in bfloat16
    assert sharded.sampling == memory(eight, vllm="colocate").sampling == whole and plain.sampling == 0
    assert (
        memory(eight, vllm="colocate", beta=0.0).sampling == memory(eight, vllm="colocate", lora_rank=2).sampling == 0
    )
    # With two layers, everything is gathered.
    assert sharded.gradients == sharded.weights == plain.weights // 8 + whole
    in_main_memory = memory(replace(eight, offload=True))
    assert in_main_memory.gradients == in_main_memory.weights == whole
    assert in_main_memory.optimizer == in_main_memory.reference == 0 < sharded.optimizer
    assert (
        memory(eight, lora_rank=2).activations < memory(replace(eight, gpus=1, sharded=False), lora_rank=2).activations
    )


@pytest.mark.parametrize(
    ("options", "kept", "parts"),
    [
        # GiB of weights, gradients, optimizer, activations by hand, with 7,615,616,512 parameters.
        ({}, "float32", (28.37, 28.37, 56.74)),
        ({"dtype": "bfloat16"}, "bfloat16", (14.19, 14.19, 28.37)),
        # 40,370,176 weights of adapters in float32.
        ({"lora_rank": 16}, "bfloat16", (14.19 + 0.15, 0.15, 0.30)),
        # 6,525,288,448 weights in 4.13 bits, 1,090,328,064 in bfloat16.
        ({"lora_rank": 16, "load_in_4bit": True}, "bfloat16", (3.13 + 2.03 + 0.15, 0.15, 0.30)),
    ],
)
def test_a_model_of_7b_needs_what_arithmetic_says(options: dict[str, Any], kept: str, parts: tuple[float, ...]) -> None:
    """Qwen2.5-7B: the activations that checkpointing keeps are mainly the inputs of 28 layers."""
    sizes = {"vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28}
    config = Qwen2Config(**sizes, num_attention_heads=28, num_key_value_heads=4, dtype="bfloat16")
    settings = TrainStudentSettings(model="m", input="i", out="o", device="cpu", **options)
    one, eight = Machine("one", 1, 80 * GIB), Machine("eight", 8, 80 * GIB, sharded=True)
    memory = Estimator(config, 16_384).memory(settings, one)
    counted = count_activations(config, settings, 16_384, autocast=True)
    assert counted is not None
    assert [memory.weights, memory.gradients, memory.optimizer] == pytest.approx([GIB * p for p in parts], rel=0.02)
    assert counted.saved == pytest.approx(16_384 * 3584 * 28 * getattr(torch, kept).itemsize, rel=0.15)
    if not options:
        sharded = Estimator(config, 16_384).memory(settings, eight)
        gathered = 2 * (2 * 152_064 * 3584 + 2 * 233_057_792)  # embeddings, head and two layers
        assert sharded.weights == pytest.approx(28.37 * GIB / 8 + gathered, rel=0.02)
        assert sharded.optimizer == pytest.approx(56.74 * GIB / 8, rel=0.02)


def test_a_dry_run_prints_a_table_for_four_machines(rlt: Rlt, tiny: Tiny, problems: Path) -> None:
    options = "--model", tiny(), "--in", problems, "--out", "out", "--device", "cpu", "--dry-run"
    result = rlt("train-teacher", "rl", *options, "--student", tiny("chat", 1), "--max-tokens", 20, "--held-out", 2,
                 "--questions", 2, "--vllm", "colocate")  # fmt: skip
    table = {
        line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if re.search(r"(\s+\d+\.\d+){4}", line)
    }
    assert set(table) == {
        "weights", "gradients", "optimizer", "reference", "student", "vllm", "sampling", "activations", "logits",
        "total",
    }  # fmt: skip
    last = rlt("train-teacher", "rl", *options, "--student", tiny("chat", 1), "--max-tokens", 20, "--held-out", 2,
               "--questions", 2, "--lora-rank", 2, "--load-in-4bit")  # fmt: skip
    assert "8 x 80 GB: fits" in last.stdout and "FSDP2" not in last.stdout
    assert table["vllm"] == ["0.000", "7.200", "24.000", "24.000"]
    assert result.stdout.count(": fits, about") == 3
    assert not Path("out").exists()


def test_a_training_that_does_not_fit_is_started_with_a_warning(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from rlt_data.training import plan

    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "It is 1."}]
    data = write_jsonl(tmp_path / "rows.jsonl", [{"messages": turns}] * 4)
    monkeypatch.setattr(plan, "this_machine", lambda _: Machine("this launch, 1 x cuda", 1, 2**20))
    sizes = {"batch_size": 4, "micro_batch_size": 4, "max_steps": 1, "device": "cpu"}
    assert train_student(TrainStudentSettings(model=str(tiny()), input=str(data), out="out", **sizes)).steps == 1
    [warning] = [record.getMessage() for record in caplog.records if "does not fit" in record.getMessage()]
    assert "this launch, 1 x cuda" in warning


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "phi3", "gpt_oss"])
def test_activations_of_common_architectures_are_counted(name: str) -> None:
    sizes = {"vocab_size": 500, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(name, **sizes, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    settings = TrainStudentSettings(model="m", input="i", out="o", device="cpu", micro_batch_size=2)
    counted = count_activations(config, settings, 128, autocast=True)
    assert counted and counted.saved >= 2 * 2 * 128 * 64 * 4 and counted.recomputed > 0


#: Model of the estimates in docs/gpus.md, and its size in bfloat16.
_QWEN_7B, _QWEN_7B_BYTES = MIDDLE.config, 2 * 7_615_616_512


@pytest.mark.parametrize(
    ("line", "kind", "fixed", "flags"),
    [
        (
            "| `train-student`",
            TrainStudentSettings,
            {},
            [{"lora_rank": 16, "load_in_4bit": True}, {"lora_rank": 16}, {}],
        ),
        (
            "| `train-teacher rl`",
            TrainTeacherSettings,
            {"student": "s"},
            [
                {"lora_rank": 16, "load_in_4bit": True, "student_device": "offload", "max_tokens": 2048, "group": 8},
                {"lora_rank": 16, "vllm": "colocate"},
                {"vllm": "colocate"},
            ],
        ),
    ],
)
def test_the_estimates_of_the_docs_are_those_of_dry_runs(
    line: str, kind: Any, fixed: dict[str, str], flags: list[dict[str, Any]]
) -> None:
    estimator = Estimator(_QWEN_7B, 16_384, _QWEN_7B_BYTES if kind is TrainTeacherSettings else 0)
    settings = [kind(model="m", input="i", out="o", **fixed, **each) for each in flags]
    found = [estimator.memory(*pair) for pair in zip(settings, common_machines(settings[-1]), strict=True)]
    [stated] = [text for text in _GPUS.read_text().splitlines() if text.startswith(line)]
    assert [round(memory.total / GIB) for memory in found] == [int(size) for size in re.findall(r"\((\d+) GiB", stated)]
    assert all(memory.fits for memory in found)


def test_colocated_vllm_needs_room_for_its_copy() -> None:
    settings = TrainTeacherSettings(model="m", student="s", input="i", out="o", lora_rank=16, vllm="colocate")
    estimator = Estimator(_QWEN_7B, 4_000)
    one, eight = common_machines(settings)[1:]
    text = cache_bytes(_QWEN_7B, 4_000, 2)
    memory = estimator.memory(settings, one)
    assert memory.vllm_least == _QWEN_7B_BYTES + text + GIB and memory.fits
    small = estimator.with_remedies(settings.model_copy(update={"vllm_memory": 0.15}), one)
    assert small.fits is False and small.remedies == ("--vllm-memory 0.2",)
    assert "vLLM's 12.0 GiB are less than the 15.4 that it needs" in small.verdict
    halved = settings.model_copy(update={"vllm_memory": 0.15, "vllm_tensor_parallel": 2})
    assert estimator.memory(halved, eight).fits
    on_eight = estimator.with_remedies(settings.model_copy(update={"vllm_memory": 0.15}), eight)
    assert on_eight.remedies == ("--vllm-memory 0.2", "--vllm-tensor-parallel 2")
    assert "requires a multiple of 2 GPUs for --vllm-tensor-parallel" in estimator.memory(halved, one).verdict


def test_a_machine_on_which_the_command_would_be_refused_is_named() -> None:
    estimator = Estimator(_QWEN_7B, 1_000, _QWEN_7B_BYTES)
    tuning = TrainStudentSettings(model="m", input="i", out="o", batch_size=16, micro_batch_size=4)
    small, _, eight = (estimator.with_remedies(tuning, machine) for machine in common_machines(tuning))
    assert eight.fits and eight.verdict.endswith("; requires a multiple of 32 as --batch-size (now 16)")
    assert not any("such GPUs" in remedy for remedy in small.remedies)  # 16 rows are too few for 8 or more GPUs

    def student(device: str, machine: int) -> Memory:
        settings = TrainTeacherSettings(model="m", student="s", input="i", out="o", lora_rank=16, student_device=device)
        return estimator.memory(settings, common_machines(settings)[machine])

    assert student("cuda:0", 1) == student("auto", 1) and student("cuda:0", 1).student > 14 * GIB
    assert student("cuda:1", 1).student == 0 and "requires further GPUs for the student" in student("cuda:1", 1).verdict


def test_a_plan_of_adapters_prints_nothing(recwarn: pytest.WarningsRecorder) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    config = Qwen3MoeConfig(vocab_size=500, num_experts=4, num_experts_per_tok=2, **sizes, **heads)
    settings = TrainStudentSettings(model="m", input="i", out="o", lora_rank=4, device="cpu")
    assert Estimator(config, 100).memory(settings, common_machines(settings)[0]).fits
    assert not [warning for warning in recwarn if "pattern" in str(warning.message)]
