"""The comparisons with peers at tiny size: every side that is installed runs, and the figures make sense."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks import exactness, generation, ranking, report, scoring
from benchmarks.operations import Decoder
from benchmarks.shapes import Shape, shape
from benchmarks.worker import ROOT, SideError, Worker, in_turn
from tests.tiny_models import make_tiny

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a window of 24 tokens in every other layer."""
    return make_tiny(tmp_path_factory.mktemp("models") / "sliding", "sliding")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs a benchmark and returns what it saves."""

    def run(module: Any, *arguments: object) -> dict[str, Any]:
        name = module.__name__.removeprefix("benchmarks.")
        monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
        monkeypatch.setattr(report, "RESULTS", tmp_path)
        monkeypatch.setenv("RLT_DATA_KEEP_RESULTS", "1")
        module.main()
        assert "| --- |" in (tmp_path / f"{name}.md").read_text()
        return json.loads((tmp_path / f"{name}.json").read_text())  # type: ignore[no-any-return]

    return run


def test_operations_are_counted_for_the_weights_and_the_pairs_that_are_seen(tiny: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny)
    decoder = Decoder.of(model.config)
    linear = [module.weight.numel() for module in model.base_model.modules() if isinstance(module, torch.nn.Linear)]
    assert decoder.layer_parameters == sum(linear)
    assert decoder.head_parameters == model.lm_head.weight.numel()

    query, key = torch.arange(50)[:, None], torch.arange(50)
    seen = [key <= query, (key <= query) & (key > query - 24)]
    pairs = sum(int(mask[10:].sum()) for mask in seen)
    expected = 2 * decoder.layer_parameters * 40 + 2 * decoder.head_parameters * 7 + 4 * 4 * 16 * pairs
    assert decoder.operations(50, 10, 7) == expected
    # A shared prompt counts once, up to the token that predicts the first scored one.
    assert decoder.scoring_operations(31, [20, 20]) == decoder.operations(30, 0, 0) + 2 * decoder.operations(50, 30, 20)


def test_shapes_are_named_or_given_by_their_numbers() -> None:
    assert shape("A") == shape("419+181x16") == Shape(419, 181, 16)
    assert shape("3+2x2").group(list(range(7))) == [[[0, 1, 2], [3, 4]], [[0, 1, 2], [5, 6]]]
    for wrong in ("D", "3+2", "3+0x2"):
        with pytest.raises(argparse.ArgumentTypeError, match="PROMPT"):
            shape(wrong)


def test_a_side_without_enough_memory_is_reported_and_goes_on(tiny: Path) -> None:
    side = Worker("peers.Script", str(tiny), "float32")
    with pytest.raises(SideError, match=r"allocate|memory"):
        side.call("generate", [[5, 6, 7]], 10**11, 1)
    answer = side.call("generate", [[5, 6, 7]], 2, 3)
    assert answer.result == 6 and answer.cpu_seconds > 0 and answer.megabytes > 50
    side.close()


def test_a_killed_side_fails_alone(tiny: Path) -> None:
    killed, other = (Worker("peers.Script", str(tiny), "float32") for _ in range(2))
    killed._process.kill()
    failed: dict[str, str] = {}
    calls = {name: partial(side.call, "score", [[[5], [6]]]) for name, side in (("a", killed), ("b", other))}
    answers = in_turn(calls, 2, failed)
    assert "lack of memory" in failed["a"] and len(answers["b"]) == 2
    killed.close()
    other.close()


def test_a_side_that_cannot_start_says_why() -> None:
    with pytest.raises(SideError, match="OSError"):
        Worker("peers.Script", "no-such-folder", "float32")


def test_a_side_imports_the_other_checkout(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "rlt_data").mkdir()
    (tmp_path / "rlt_data" / "__init__.py").write_text("raise ImportError('this is the other checkout')")
    with pytest.raises(SideError, match="this is the other checkout"):
        Worker("ours.Ours", str(tiny), "float32", checkout=tmp_path)


def test_scoring_compares_all_sides(run: Run, tiny: Path) -> None:
    shapes = "--shapes", "40+30x3", "30+80x1"
    saved = run(scoring, "--model", tiny, *shapes, "--dtypes", "float32", "--rounds", 2, "--against", ROOT)
    sides = saved["settings"]["sides"]
    assert {"ours", "against", "script", "limit"} <= set(sides)
    assert [row["side"] for row in saved["rows"]] == 2 * sides
    for row in saved["rows"]:
        assert row["CPU seconds per trace"] > 0 and 0 < row["share of the limit"] <= 1
        if row["side"] != "limit":
            assert row["largest difference"] < 1e-4 and row["peak MB"] > 50


def test_scoring_reports_sides_that_are_missing(
    run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.sides.find_spec", lambda _: None)
    saved = run(scoring, "--model", tiny, "--shapes", "20+20x1", "--dtypes", "bfloat16", "--sides", "lm-eval", "vllm")
    output = capsys.readouterr().out
    assert "lm-eval: not measured, because lm_eval is not installed" in output
    assert "vllm: not measured, because vllm is not installed" in output
    [row] = saved["rows"]
    # In bfloat16, log-probs differ from those in float32.
    assert row["side"] == "ours" and 1e-4 < row["largest difference"] < 1


@pytest.mark.slow
def test_generation_compares_equal_numbers_of_tokens(run: Run, tiny: Path) -> None:
    sizes = "--questions", 2, "--samples", 2, "--tokens", 5, "--context", 60, "--steps", 4, "--rounds", 1
    saved = run(generation, "--model", tiny, *sizes, "--dtypes", "float32", "--against", ROOT)
    short = {row["side"]: row["tokens"] for row in saved["rows"] if "prompts" in row["what"]}
    steps = {row["side"]: row["tokens"] for row in saved["rows"] if "steps" in row["what"]}
    assert {"step", "ours", "against", "transformers"} <= set(short) and set(short.values()) == {20}
    assert set(steps) == set(short) - {"step"} and set(steps.values()) == {16}


@pytest.mark.slow
def test_exactness_compares_with_the_unmodified_model(run: Run, tiny: Path) -> None:
    sizes = "--shapes", "40+30x3", "--contexts", 60, "--samples", 2, "--steps", 2, "--rounds", 1
    saved = run(exactness, "--model", tiny, *sizes)
    assert all(row["exact"] > 0 and row["plain"] > 0 for row in saved["rows"]) and len(saved["rows"]) == 2
    exact, plain = (
        {key: row[key] for key in row if key != "side"} for row in saved["largest differences of a log-prob"]
    )
    assert max(exact.values()) < 1e-5 < max(plain.values()) * 100


def test_ranking_selects_the_same_traces_as_polars(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    saved = run(ranking, "--rows", 1600, "--words", 5, "--shares", 2, "--traces", 4, "--folder", folder)
    steps = ["merge", "rank", "rank --buckets 4", "distill", "polars: rank", "polars: distill"]
    assert [row["step"] for row in saved["rows"]] == steps
    assert all(row["CPU seconds"] > 0 and row["peak MB"] > 10 for row in saved["rows"])
    shutil.rmtree(folder)
