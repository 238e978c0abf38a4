"""benchmarks.gpu at tiny size on the CPU, as the bundle that goes to a machine with a GPU."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import bundle, generation, loading, memory, scoring
from benchmarks.gpu.bench import Bench, Rows, Unexpected
from benchmarks.gpu.models import TINY, Prompts, Texts, main_config, random_model, sliding_config
from benchmarks.gpu.scoring import scoring_operations
from benchmarks.operations import seen_pairs

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
#: Dependencies of rlt-data that neither PyTorch nor Transformers needs and that are not in the bundle.
ABSENT = ("accelerate", "aiohttp", "datasets", "matplotlib", "peft", "polars", "pyarrow", "scipy", "trl", "upath")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(TINY, CPU, tmp_path)


def test_the_bundle_runs_every_section_with_pytorch_and_transformers_alone(tmp_path: Path) -> None:
    bundle.copy_project(tmp_path / "gpu")
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({ABSENT})); "
        "from benchmarks.gpu.__main__ import main; import rlt_data; print(rlt_data.__file__, file=sys.stderr); "
        "sys.exit(main(['--tiny', '--out', 'results']))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path / "gpu",
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert str(tmp_path) in finished.stderr
    sections = json.loads((tmp_path / "gpu" / "results" / "gpu.json").read_text())["sections"]
    assert list(sections) == list(gpu.SECTIONS)
    rows = {name: section["rows"] for name, section in sections.items()}
    assert [row["check"] for row in rows["head check"]] == ["accepted"] * 5
    compared = [row for name in ("scoring", "sliding windows") for row in rows[name] if "x plain" in row]
    assert len(compared) == 6 and all(row["mean difference"] < 0.02 for row in compared)
    assert [row["batch sizes"] for row in rows["batch sizes"][:3]] == ["32, 32"] * 3
    assert "the limit is 2" in rows["loading"][1]["ModelError"]
    for name in ("memory of scoring", "memory of generation"):
        assert rows[name][0]["failures"].count("out of memory") == 1 and "400 tokens" in rows[name][0]["failures"]
    page = (tmp_path / "gpu" / "results" / "gpu.md").read_text()
    assert all(f"## {name.capitalize()}\n" in page for name in gpu.SECTIONS)
    assert "| 0 | 0.0" in page and "are not shown" in page


def test_a_failure_keeps_its_rows_and_the_other_sections_and_gives_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(_: Bench) -> Rows:
        """Break."""
        yield {"figure": 1}
        raise RuntimeError("CUDA error:\nan illegal access")

    def measures_nonsense(_: Bench) -> Rows:
        """Measure nonsense."""
        yield {"figure": -2}
        raise Unexpected("the figure is negative")

    def works(_: Bench) -> Rows:
        """Work."""
        yield {"figure": 3}

    monkeypatch.setattr(gpu, "SECTIONS", {"broken": breaks, "nonsense": measures_nonsense, "working": works})
    assert gpu.main(["--tiny", "--out", str(tmp_path)]) == 1
    sections = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert [section["rows"] for section in sections.values()] == [[{"figure": 1}], [{"figure": -2}], [{"figure": 3}]]
    assert sections["broken"]["failed"] == "RuntimeError: CUDA error: an illegal access"
    assert sections["nonsense"]["failed"] == "the figure is negative" and "failed" not in sections["working"]
    assert "**Failed:** the figure is negative" in (tmp_path / "gpu.md").read_text()


def test_sections_after_the_time_limit_are_skipped_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "TIME_LIMIT", -1)
    assert gpu.main(["--tiny", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "gpu.md").read_text().count("**Skipped:**") == len(gpu.SECTIONS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_one_line_says_what_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        gpu.main([])
    assert stopped.value.code == 2 and "--tiny" in capsys.readouterr().err.splitlines()[-1]


def test_log_probs_of_shuffled_tokens_are_reported(bench: Bench) -> None:
    """What a wrong mask does: log-probs of the same distribution that belong to other tokens."""
    list(scoring.plain_scoring(bench))
    for logprobs in bench.plain_logprobs[str(TINY.long)].values():
        logprobs[:] = logprobs[::-1]
    with pytest.raises(Unexpected, match="more than rounding"):
        list(scoring.scoring(bench))


def test_a_refused_model_is_reported_and_the_weights_are_restored(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bench.model.lm_head.weight.clone()
    config = bench.model.config
    monkeypatch.setattr(config, "final_logit_softcapping", 1.0, raising=False)  # this model's own logits ignore it
    with pytest.raises(Unexpected, match="seed 0"):
        list(loading.head_check(bench))
    assert torch.equal(bench.model.lm_head.weight, before)


def test_batches_that_shrink_from_block_to_block_are_reported(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Prompts.make
    monkeypatch.setattr(Prompts, "make", lambda prompts, words, seed=0: make(prompts, words, seed)[seed:])
    rows = generation.batch_sizes(bench)
    assert [next(rows)["batch sizes"] for _ in range(3)] == ["32, 32", "32, 24", "32, 16"]
    with pytest.raises(Unexpected, match="differ"):
        list(rows)


@pytest.mark.parametrize("section", [memory.memory_of_scoring, memory.memory_of_generation])
def test_small_requests_that_fail_are_reported(section: Any, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_PASS_LIMIT", 50)  # less than each of them needs
    with pytest.raises(Unexpected, match="0 of 7"):
        list(section(bench))


def test_a_giant_request_that_fits_is_reported(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_PASS_LIMIT", 1000)
    with pytest.raises(Unexpected, match="7 of 7"):
        list(memory.memory_of_scoring(bench))


@pytest.mark.parametrize("config", [main_config(TINY), sliding_config(TINY)], ids=["main", "sliding"])
def test_operations_are_those_that_pytorch_counts_without_unseen_pairs(config: Any) -> None:
    model = random_model(config, CPU).float()
    model.set_attn_implementation("eager")  # all pairs are computed
    [group] = groups = Texts(1, 2, 10, 40).make(600)
    ids = torch.tensor(np.stack([request.ids[:-1] for request in group]).astype(np.int64))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.lm_head(model.base_model(input_ids=ids).last_hidden_state[:, 9:])
    counted = counter.get_flop_counts()["Global"]
    all_pairs = counted.pop(torch.ops.aten.bmm)
    dimensions = config.num_attention_heads * (getattr(config, "head_dim", None) or 8)
    windows = [24 if kind == "sliding_attention" else None for kind in config.layer_types]
    assert all_pairs == len(group) * 4 * dimensions * 39 * 39 * len(windows)
    seen = len(group) * 4 * dimensions * sum(seen_pairs(0, 39, window) for window in windows)
    separate = scoring_operations(config, [[request] for request in group], shared=False)
    assert separate == sum(counted.values()) + seen
    saved = separate - scoring_operations(config, groups, shared=True)
    weights = sum(at.numel() for at in model.base_model.layers.parameters() if at.dim() == 2)
    assert saved == 2 * weights * 9 + 4 * dimensions * sum(range(1, 10)) * len(windows)


@pytest.mark.parametrize("window", [None, 1, 5, 100])
def test_seen_pairs_are_those_of_a_mask(window: int | None) -> None:
    query, key = torch.arange(3, 20)[:, None], torch.arange(20)[None]
    mask = (key <= query) & (key > query - (window or 100))
    assert seen_pairs(3, 20, window) == int(mask.sum())


def test_the_page_of_results_names_every_section() -> None:
    page = (ROOT / "docs" / "results" / "gpu.md").read_text().lower()
    assert [name for name in gpu.SECTIONS if name not in page] == []


def test_scales_describe_the_same_measurements() -> None:
    """At both sizes, a crowd exceeds one batch, and the giant request is longer than a batch but fits the context."""
    for scale in (gpu.FULL, gpu.TINY):
        crowd, giant = scale.crowd, scale.giant
        assert crowd.groups * crowd.tokens > scale.batch_tokens
        assert scale.batch_tokens < giant.tokens < scale.model["max_position_embeddings"]
        assert dataclasses.replace(giant, tokens=crowd.tokens, groups=crowd.groups) == crowd
