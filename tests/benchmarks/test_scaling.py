"""The table of docs/scaling.md and the costs of the recipes follow from their inputs."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks import recipes, scaling
from benchmarks.report import markdown
from rlt_data.recipes.nano.tokenizer import build_tokenizer

DOCS = Path(__file__).parents[2]


def row(rows: list[dict[str, Any]], machine: str, stage: str) -> dict[str, Any]:
    [found] = [row for row in rows if row["machine"].startswith(machine) and row["stage"] == stage]
    return found


def test_a_measured_rate_replaces_the_assumed_one() -> None:
    rows = scaling.rows(scaling.parser().parse_args(["--rate", "generate:80=1000"]))
    one, eight = row(rows, "1 x 80", "generate"), row(rows, "8 x 80", "generate")
    tokens = 17_000 * 16 * 3296
    assert one["rate"] == eight["rate"] == "measured" and row(rows, "1 x 24", "generate")["rate"] != "measured"
    assert one["seconds"] == f"{tokens / 1000:,.0f}" and eight["seconds"] == f"{tokens / 8000:,.0f}"
    assert one["$"] == eight["$"] == f"{tokens / 1000 / 3600 * 2.5:,.0f}"


@pytest.mark.parametrize("rate", ["foo", "generat:80=9000", "score:80=x", "score:80=0", "score:32=10"])
def test_a_rate_that_is_none_is_refused(rate: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scaling.parser().parse_args(["--rate", rate])
    assert f"'{rate}' is not STAGE:GIGABYTES=NUMBER" in capsys.readouterr().err


def test_a_sample_that_does_not_fit_has_no_rate() -> None:
    rows = scaling.rows(scaling.parser().parse_args(["--trace", "200000"]))
    assert row(rows, "1 x 24", "generate")["seconds"] == "inf" != row(rows, "1 x 80", "generate")["seconds"]


def test_decoding_is_limited_by_memory() -> None:
    rates = [scaling.decoding_limit(gpu, scaling.MODEL, 800, 3296) for gpu in (scaling.RTX_4090, scaling.H100)]
    (slow, few), (fast, many) = rates
    assert few < many and slow < fast
    # Each step of the 31 samples reads 15.2 GB of weights and 31 * 2,448 * 57,344 bytes of keys and values.
    assert few == 31 and slow == pytest.approx(31 * 1008e9 / (2 * 7.6153e9 + 31 * 2448 * 57344), rel=1e-3)


def test_the_table_of_the_docs_is_that_of_the_command() -> None:
    assert markdown(scaling.rows(scaling.parser().parse_args([]))) in (DOCS / "docs" / "scaling.md").read_text()


@pytest.mark.parametrize(("recipe", "scale"), recipes.shipped())
def test_nothing_is_shipped_for_a_card_that_it_does_not_fit(recipe: str, scale: str) -> None:
    steps = recipes.steps(recipe, scale, scaling.MACHINES[recipes.SCALES[scale].machine])
    assert [step.step for step in steps if not step.fits] == []
    assert {"score", "train-student", "evaluate"} <= {step.step.partition(" (")[0] for step in steps}
    assert all(0 < step.seconds < float("inf") and step.dollars > 0 for step in steps)
    assert markdown([recipes.by_file(recipe, scale)]).splitlines()[-1] in (DOCS / "recipes" / "README.md").read_text()


def test_the_settings_of_a_larger_card_do_not_fit_a_smaller_one() -> None:
    for scale, machine in (("single-gpu", scaling.MACHINES[0]), ("paper", scaling.MACHINES[1])):
        too_large = {step.step for step in recipes.steps("teacher", scale, machine) if not step.fits}
        assert too_large == {"train-teacher warmup (warmup)", "train-teacher rl (teacher)", "train-student (student)"}
    for recipe in ("teacher", "student"):
        machines = {recipes.SCALES[scale].machine for name, scale in recipes.shipped() if name == recipe}
        assert machines == set(range(len(scaling.MACHINES)))


def test_self_distillation_holds_five_times_the_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    rows, tokens, vocabulary = 2, 128, 20_000
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = Qwen2Config(vocab_size=vocabulary, num_hidden_layers=1, tie_word_embeddings=True, **sizes)
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    settings = SDFTConfig(
        output_dir=str(tmp_path / "out"),
        per_device_train_batch_size=rows,
        num_generations=1,
        max_completion_length=tokens,
        distillation_alpha=1.0,
        report_to="none",
        bf16=True,  # as on GPUs
        use_cpu=True,
    )
    assert settings.vllm_gpu_memory_utilization == recipes._TRL_VLLM_MEMORY
    questions = Dataset.from_list([{"prompt": "a", "privileged_context": "b"}] * rows)
    trainer = SDFTTrainer(str(tmp_path), settings, train_dataset=questions, processing_class=build_tokenizer())
    model = trainer.accelerator.prepare_model(trainer.model)
    prompt, answer = torch.ones(rows, 4, dtype=torch.long), torch.ones(rows, tokens, dtype=torch.long)
    both = torch.cat([prompt, answer], dim=1)
    batch = {"prompt_ids": prompt, "prompt_mask": prompt, "completion_ids": answer, "completion_mask": answer}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(model, batch | {"teacher_input_ids": both, "teacher_attention_mask": both})
        trainer.accelerator.backward(loss)
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = list(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))
    gradients = 4 * sum(weight.numel() for weight in trainer.model.parameters())
    logits = recipes._SELF_DISTILLATION_LOGITS * rows * tokens * vocabulary
    assert max(held) - gradients == pytest.approx(logits, rel=0.05)
