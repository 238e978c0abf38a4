"""Conflicts between the steps of a pipeline are found before a model is loaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from rlt_data.steps import conflicts
from rlt_data.steps.pipeline import load_pipeline
from rlt_data.storage.run import RunFolder
from tests.conftest import Rlt, write_jsonl

Tiny = Callable[..., Path]


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


#: Sections that conflict, and what the message says, in this order. No such model exists, so none can be loaded first.
CONFLICTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "other temperature": (
        {"generate": {"temperature": 1}},
        ["score.temperature 0.7", "generate.temperature", "score.temperature: 1 (free)", "score.teacher: nowhere (one"],
    ),
    "greedy sampling stores log-probs at temperature 1": (
        {"generate": {"temperature": 0}},
        ["score.temperature 0.7", "score.temperature: 1 (free)", "score.teacher: none"],
    ),
    "only stored log-probs, at another temperature": (
        {"score": {"teacher": "t", "teacher_logprobs": "trace", "temperature": 0.5}},
        ["score.temperature 0.5", "score.temperature: 0.7 (free)", "score.teacher_logprobs: auto (one extra"],
    ),
    "full KL without a teacher": ({"score": {"kl": "full"}}, ["score.kl", "score.teacher"]),
    "KL with teacher none": (
        {"score": {"teacher": "none", "kl": "k3"}, "rank": {"by": "r_ss"}},
        ["score.kl", "score.teacher: none"],
    ),
    "computing log-probs without a teacher": (
        {"score": {"teacher_logprobs": "compute"}},
        ["score.teacher_logprobs", "score.teacher"],
    ),
    "reward without a teacher": (
        {"score": {"teacher": "none"}},
        ["score.teacher: none", "rank.by: reward_without_entropy (free)", "name score.teacher"],
    ),
    "more traces than generate makes": (
        {"distill": {"select": "top:5"}},
        ["distill.select: top:5", "4 traces", "distill.select: top:4 (free)", "generate.n: 5"],
    ),
    "a rank that no trace has": ({"distill": {"select": "rank:5"}}, ["distill.select: rank:4 (free)"]),
    "a bucket that rank does not make": (
        {"rank": {"buckets": 2}, "distill": {"select": "bucket:3"}},
        ["distill.select: bucket:3", "2 buckets"],
    ),
    "token limit without tokenizer": ({"distill": {"max_tokens": 9}}, ["distill.max_tokens", "tokenizer"]),
    "ranks of a run without scores": ({"score": {"out": "scored"}}, ["rank.in: run", "rank.in: scored"]),
    "a condition over a signal that is not computed": (
        {"distill": {"where": "pass_rate > 0.2"}},
        ["distill.where: pass_rate", "signal pass_rate", "set curate.evaluation"],
    ),
    "a column of a signal that is not computed": (
        {"distill": {"columns": ["pass_rate"]}, "curate": {"signals": ["text"]}},
        ["distill.columns: pass_rate", "add pass_rate to curate.signals and set curate.evaluation"],
    ),
    "a rank over a signal that is not computed": (
        {"rank": {"where": ["pass_rate > 0.2"]}, "distill": {"per": "origin", "cap": 1}},
        ["rank.where: pass_rate", "set curate.evaluation"],
    ),
    "a default signal without a curate section": (
        {"distill": {"where": "NOT leaks"}},
        ["distill.where: leaks", "signal leak", "add a curate section"],
    ),
    "a default signal that is not named": (
        {"distill": {"where": "NOT leaks"}, "curate": {"signals": ["text"]}},
        ["distill.where: leaks", "signal leak", "add leak to curate.signals"],
    ),
    "a cap over a misspelt column": (
        {"distill": {"per": "orgin", "cap": 2}},
        ["distill.per: no column 'orgin'; did you mean 'origin'?"],
    ),
    "a condition that is no expression": ({"distill": {"where": ["reward <"]}}, ["distill.where: reward <: not a SQL"]),
    "a condition that is a number": (
        {"distill": {"where": ["reward"]}},
        ["distill.where: reward: must be true or false"],
    ),
    "a rank by a text": ({"rank": {"by": "origin"}}, ["rank.by: origin: must be a number"]),
    "an average": ({"distill": {"where": ["reward > AVG(reward)"]}}, ["distill.where: reward > AVG", "several rows"]),
    "ranks over earlier ranks": ({"rank": {"where": ["rank < 3"]}}, ["rank.where: rank < 3: ranks cannot depend on"]),
    "a measure that score does not compute": ({"rank": {"by": "-ifd"}}, ["rank.by: ifd is null", "score.measures"]),
    "a column with lists": ({"distill": {"columns": "token_ids"}}, ["distill.columns: token_ids has a list per trace"]),
    "no such signal": ({"curate": {"signals": ["txt"]}}, ["curate.signals: no signal 'txt'; did you mean 'text'?"]),
    "a signal without its setting": (
        {"curate": {"signals": ["contamination"]}},
        ["curate.signals: contamination needs curate.against"],
    ),
    "no such benchmark": ({"curate": {"against": "b.jsonl"}}, ["curate.against: b.jsonl: no such file"]),
    "no such reviews": ({"curate": {"reviews": "r.csv"}}, ["curate.reviews: r.csv: no such file"]),
    "no such evaluation": ({"curate": {"evaluation": "solved"}}, ["curate.evaluation: solved: no such run folder"]),
    "no such ids": ({"distill": {"ids": "i.txt"}}, ["distill.ids: i.txt: no such file"]),
    "no scores to rank": ({"score": None}, ["rank: run has no scores", "score section"]),
    "no ranks to select from": ({"rank": None}, ["distill: run has no ranks", "rank section"]),
    "a data set of a run without ranks": ({"distill": {"in": "other"}}, ["distill.in: other", "distill.in: run"]),
}


@pytest.mark.parametrize("name", CONFLICTS)
def test_conflicts_name_the_cheapest_remedy_first_and_load_no_model(rlt: Rlt, tmp_path: Path, name: str) -> None:
    changes, facts = CONFLICTS[name]
    pipeline: dict[str, Any] = {
        "out": "run",
        "generate": {"in": "rows.jsonl", "teacher": "nowhere", "n": 4},
        "score": {"student": "nowhere"},
        "rank": {},
        "distill": {},
    }
    for section, keys in changes.items():
        if keys is None:
            del pipeline[section]
        else:
            pipeline[section] = pipeline.get(section, {}) | keys
    errors = rlt("run", write(tmp_path / "pipeline.yaml", pipeline), code=2).stderr
    assert errors.startswith("error: ") and errors.count("\n") == 1
    positions = [errors.find(fact) for fact in facts]
    assert -1 not in positions and positions == sorted(positions), errors
    assert not Path("run").exists()


def test_every_conflict_has_a_line(rlt: Rlt, tmp_path: Path) -> None:
    pipeline = {
        "out": "run",
        "generate": {"in": "rows.jsonl", "teacher": "nowhere", "temperature": 1},
        "score": {"student": "nowhere"},
        "rank": None,
        "distill": {"select": "top:20"},
    }
    errors = rlt("run", write(tmp_path / "pipeline.yaml", pipeline), code=2).stderr
    assert [line.split()[1].split(".")[0] for line in errors.splitlines()] == ["score", "distill"]


def cutting_student(tiny: Tiny, folder: Path) -> Path:
    """A model whose chat template drops earlier thoughts, as those of reasoning models do."""
    shutil.copytree(tiny(), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    cut = "(message['content'].split('<|end_of_thought|>')[-1])"
    tokenizer.chat_template = tokenizer.chat_template.replace("message['content']", cut)
    tokenizer.save_pretrained(folder)
    return folder


def test_models_of_later_steps_are_checked_before_generate(
    rlt: Rlt, tiny: Tiny, problems: Path, tmp_path: Path
) -> None:
    teacher, cutting = str(tiny()), str(cutting_student(tiny, tmp_path / "cutting"))
    generate = {"in": str(problems), "teacher": teacher, "n": 1, "max_tokens": 4}
    for sections, code, fact in [
        ({"score": {"student": "nowhere"}}, 6, "nowhere: no such model"),
        ({"score": {"student": teacher, "teacher": "nowhere"}}, 6, "nowhere: no such model"),
        ({"score": {"student": cutting}}, 6, "chat template of"),
        ({"score": {"student": teacher}, "rank": None, "distill": {"tokenizer": cutting}}, 6, "chat template of"),
        ({"score": {"student": teacher, "format": "think"}}, 2, "score.format: "),
    ]:
        file = write(tmp_path / "pipeline.yaml", {"out": "run", "generate": generate, **sections})
        errors = rlt("run", file, code=code).stderr
        assert fact in errors and errors.count("error: ") == 1
        assert not Path("run").exists()


def test_a_custom_reward_needs_no_teacher(rlt: Rlt, tiny: Tiny, problems: Path, tmp_path: Path) -> None:
    Path("short_reward.py").write_text("def short(row): return -row['thought_tokens']\n")
    pipeline = {
        "out": "run",
        "generate": {"in": str(problems), "teacher": str(tiny()), "n": 1, "max_tokens": 4},
        "score": {"student": str(tiny()), "teacher": "none", "reward": "short_reward:short"},
        "rank": {},
    }
    assert "ranked" in rlt("run", write(tmp_path / "pipeline.yaml", pipeline)).stdout


def test_scores_of_other_settings_are_refused_before_generate_adds_traces(
    rlt: Rlt, tiny: Tiny, problems: Path, tmp_path: Path
) -> None:
    generate = {"in": str(problems), "teacher": str(tiny()), "n": 1, "max_tokens": 4}
    score: dict[str, Any] = {"student": str(tiny())}
    pipeline = {"out": "run", "generate": generate, "score": score}
    rlt("run", write(tmp_path / "pipeline.yaml", pipeline))
    changed = pipeline | {"generate": generate | {"n": 2}, "score": score | {"lambda": 1}}
    result = rlt("run", write(tmp_path / "pipeline.yaml", changed), code=5)
    assert "lambda was 3.0, now 1.0" in result.stderr and "traces" not in result.stdout


def test_paths_relative_to_the_pipeline_file_are_refused(rlt: Rlt, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write_jsonl(tmp_path / "deep" / "rows.jsonl", [{"question": "q", "solution": "s"}])
    pipeline = {"out": "run", "generate": {"in": "rows.jsonl", "teacher": "nowhere"}}
    errors = rlt("run", write(tmp_path / "deep" / "pipeline.yaml", pipeline), code=2).stderr
    assert "generate.in: rows.jsonl" in errors and "deep/rows.jsonl" in errors


def test_a_separate_score_names_the_same_remedies_in_the_same_order(rlt: Rlt, tiny: Tiny, problems: Path) -> None:
    rlt("generate", "--in", problems, "--teacher", tiny(), "--n", 1, "--max-tokens", 4, "--temperature", 1,
        "--out", "run")  # fmt: skip
    errors = rlt("score", "--in", "run", "--student", tiny(), code=2).stderr
    facts = ["--temperature 1 (free)", f"--teacher {tiny()} (one extra forward pass)", "--teacher none"]
    positions = [errors.find(fact) for fact in facts]
    assert -1 not in positions and positions == sorted(positions), errors
    rlt("score", "--in", "run", "--student", tiny(), "--temperature", 1)
    errors = rlt("score", "--in", "run", "--student", tiny(), "--teacher", tiny(), "--teacher-logprobs", "trace",
                 "--out", "other", code=2).stderr  # fmt: skip
    assert errors.index("--temperature 1 (free)") < errors.index("forward pass")


def test_columns_of_computed_and_own_signals_are_known(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("short: thought_tokens < 200\n")
    sections: dict[str, Any] = {
        "out": "run",
        "generate": {"in": "rows.jsonl", "teacher": "nowhere"},
        "rank": {},
        "distill": {
            "where": ["short", "pass_rate > 0.2", "reward > 0"],
            "columns": "question",
            "per": "origin",
            "cap": 1,
        },
    }
    curate = {"signals": [str(tmp_path / "mine.yaml"), "pass_rate"], "evaluation": "solved"}
    RunFolder("run").record("rank", {})
    settings = load_pipeline(write(tmp_path / "p.yaml", sections | {"curate": curate}))
    assert conflicts._column_conflicts(settings) == []
    RunFolder("run").record(
        "curate", {"signals": {"pass_rate": {"level": "question", "columns": {"pass_rate": "float"}}}}
    )
    settings = load_pipeline(write(tmp_path / "p.yaml", sections))
    assert conflicts._column_conflicts(settings) == ["distill.where: no column 'short'"]
    (tmp_path / "wrong.yaml").write_text("short: thought_token < 200\n")
    settings = load_pipeline(
        write(tmp_path / "p.yaml", sections | {"curate": {"signals": str(tmp_path / "wrong.yaml")}})
    )
    [conflict] = conflicts._column_conflicts(settings)
    assert "wrong.yaml: short: no column 'thought_token'; did you mean 'thought_tokens'?" in conflict
    settings = load_pipeline(write(tmp_path / "p.yaml", sections | {"curate": {"signals": ["module:function"]}}))
    assert conflicts._column_conflicts(settings) == []
