from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from rlt_data.formats import ChatTemplate, Problem, Tokenizer, Views, encode, load_format
from rlt_data.scoring import (
    Alignment,
    RewardWeights,
    StudentTokens,
    align_tokens,
    score_trace,
    teacher_tokens_from_ids,
    teacher_tokens_from_text,
    tokenize_for_student,
)

Tiny = Callable[..., Path]
PROBLEM = Problem("What is 1 + 1?", "It is 2.")
FORMAT = load_format("rlt")
END = FORMAT.explanation_tags[1]


def tokenizer_of(model: Path) -> Tokenizer:
    tokenizer: Tokenizer = AutoTokenizer.from_pretrained(model)
    return tokenizer


def student_tokens(tokenizer: Tokenizer, completion: str) -> StudentTokens:
    [student] = tokenize_for_student(tokenizer, Views(FORMAT, ChatTemplate(tokenizer)), [PROBLEM], [completion])
    return student


def sampled(tokenizer: Tokenizer, student: StudentTokens) -> tuple[Alignment, int]:
    """Align with a teacher that sampled the student's tokens and then the closing tag."""
    [padding] = [tokenizer(FORMAT.padding, add_special_tokens=False)["input_ids"]]
    thought = student.encoding.ids[student.thought].tolist()
    assert thought[: len(padding)] == padding
    closing = tokenizer(END, add_special_tokens=False)["input_ids"]
    teacher = teacher_tokens_from_ids(padding, [*thought[len(padding) :], *closing])
    alignment = align_tokens(student, teacher, tokenizer, FORMAT, same_tokenizer=True)
    return alignment, len(teacher.thought_ids)


def test_a_trace_is_scored_from_tokens_logprobs_and_weights_alone(tiny: Tiny) -> None:
    tokenizer = tokenizer_of(tiny())
    student = student_tokens(tokenizer, f"One and one is two.{END} and more")
    alignment, teacher_tokens = sampled(tokenizer, student)
    thought, solution = len(student.thought), len(student.solution)
    logprobs = np.concatenate([np.full(thought, -2.0), np.full(solution, -1.0)])
    logprobs[0], logprobs[-1] = -4.0, -3.0
    weights = RewardWeights(lambda_=2.0, alpha=0.1, missing_tag_penalty=-5.0)
    row = score_trace(student, logprobs, alignment, np.full(teacher_tokens, -1.5), weights, truncated=False)
    kl_mean = (0.5 * (thought - 1) + 2.5) / thought
    r_ss = -(solution + 2) / solution + 0.1 * -3
    assert row["kl_mean"] == pytest.approx(kl_mean) and row["kl_max"] == 2.5
    assert row["r_ss"] == pytest.approx(r_ss)
    assert row["reward"] == pytest.approx(r_ss - 2 * (kl_mean + 0.1 * 2.5))
    assert (row["thought_tokens"], row["solution_tokens"], row["kl_tokens"]) == (thought, solution, thought)
    assert row["student_tokens"] == len(student.encoding) and row["uncovered_chars"] == 0
    assert row["well_formed"] and row["closed"] and not (row["truncated"] or row["empty"] or row["holds_tag"])
    assert "thought_logprobs" not in row


@pytest.mark.parametrize(
    ("completion", "truncated", "flags"),
    [
        ("We add.", True, {"closed": False, "truncated": True}),
        (f" \n{END}", False, {"empty": True}),
        (f"</thought> <|end_of_thought|>{END}", False, {"holds_tag": True}),
    ],
)
def test_flaws_and_the_penalty(tiny: Tiny, completion: str, truncated: bool, flags: dict[str, bool]) -> None:
    student = student_tokens(tokenizer_of(tiny()), completion)
    logprobs = np.full(len(student.scored), -1.0)
    row = score_trace(student, logprobs, None, None, RewardWeights(), truncated=truncated)
    fine = {"closed": True, "truncated": False, "empty": False, "holds_tag": False}
    assert {name: row[name] for name in fine} == fine | flags and not row["well_formed"]
    assert row["penalty"] == (0.0 if row["closed"] else -1.0)
    assert row["reward"] is None and row["kl_tokens"] == 0


def test_an_explanation_without_tokens_needs_no_logprobs_of_the_teacher(tiny: Tiny) -> None:
    student = student_tokens(tokenizer_of(tiny()), END)
    teacher = teacher_tokens_from_text(tokenizer_of(tiny("base")), FORMAT, "prompt" + FORMAT.padding, END)
    alignment = align_tokens(student, teacher, tokenizer_of(tiny("base")), FORMAT, same_tokenizer=False)
    assert student.empty and len(alignment) == len(alignment.single_tokens) == 0
    row = score_trace(student, np.full(len(student.scored), -1.0), alignment, None, RewardWeights(), truncated=False)
    assert (row["kl_mean"], row["kl_max"], row["thought_tokens"]) == (1.0, 1.0, 0)
    assert row["reward"] == pytest.approx(-1.01 - 3.03)


def test_tokens_of_two_tokenizers_are_compared_where_they_cover_the_same_characters(tiny: Tiny) -> None:
    """The KL terms add up to the difference of the log-probs of all aligned tokens."""
    completion = f"Où est l'élève? 17 * 20 = 340, and 3 + 4 is seven.{END}"
    student = student_tokens(tokenizer_of(tiny()), completion)
    tokenizer = tokenizer_of(tiny("base"))
    prompt = f"Explain.{FORMAT.explanation_tags[0]}{FORMAT.padding}"
    teacher = teacher_tokens_from_text(tokenizer, FORMAT, prompt, completion)
    alignment = align_tokens(student, teacher, tokenizer, FORMAT, same_tokenizer=False)
    random = np.random.default_rng(0)
    of_student, of_teacher = -random.random(len(student.scored)), -random.random(len(teacher.thought))
    row = score_trace(student, of_student, alignment, of_teacher, RewardWeights(), truncated=False, per_token=True)
    assert len(alignment.single_tokens) < row["kl_tokens"] == len(alignment) < len(student.thought)
    expected = sum(of_teacher[slice(*pair)].sum() for pair in alignment.teacher.tolist())
    expected -= sum(of_student[slice(*pair)].sum() for pair in alignment.student.tolist())
    assert sum(row["thought_kl"]) == pytest.approx(expected)
    assert row["kl_offsets"].tolist() == student.thought_offsets[alignment.student[:, 0], 0].tolist()


def test_the_full_kl_is_used_unchanged(tiny: Tiny) -> None:
    tokenizer = tokenizer_of(tiny())
    student = student_tokens(tokenizer, f"We add.{END}")
    alignment, _ = sampled(tokenizer, student)
    kl = np.arange(len(alignment.single_tokens), dtype=np.float32)
    logprobs = np.full(len(student.scored), -1.0)
    weights = RewardWeights(kl="full")
    row = score_trace(student, logprobs, alignment, None, weights, truncated=False, full_kl=kl, per_token=True)
    assert row["kl_mean"] == kl.mean() and row["kl_max"] == kl.max() and row["thought_kl"] is kl


def test_a_forward_pass_reads_the_sampled_tokens_after_the_prompt(tiny: Tiny) -> None:
    """Tokens from ids and from text agree if the tokenizer encodes the text to the same ids."""
    tokenizer = tokenizer_of(tiny())
    prompt = "Explain.<|begin_of_explanation|>" + FORMAT.padding
    text = f"We add.{END}"
    padding, completion = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (FORMAT.padding, text))
    [encoding] = encode(tokenizer, [prompt])
    by_ids = teacher_tokens_from_ids(padding, completion, encoding)
    by_text = teacher_tokens_from_text(tokenizer, FORMAT, prompt, text)
    count = len(by_text.thought)
    assert by_ids.ids is not None and by_text.ids is not None
    assert by_ids.ids.tolist() == by_text.ids.tolist()
    assert by_ids.thought[:count].tolist() == by_text.thought.tolist()
    assert by_ids.thought_ids[:count].tolist() == by_text.thought_ids.tolist()
    assert by_ids.ids[by_ids.thought].tolist() == by_ids.thought_ids.tolist()


def test_scoring_imports_no_model_code_no_engine_and_no_storage() -> None:
    code = "import sys, rlt_data.scoring, rlt_data.scoring.reward; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    forbidden = ("torch", "transformers", "pyarrow", "rlt_data.engines", "rlt_data.storage.run", "rlt_data.steps")
    assert "rlt_data.scoring.rows" in loaded
    assert not [name for name in loaded if name.startswith(forbidden)]
