"""Real tokenizers with their own chat templates; ``make test-tokenizers`` downloads them."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from rlt_data.formats import ChatTemplate, ControlTokens, Problem, Views, choose_format, encode, load_format
from rlt_data.formats.spans import uncovered
from rlt_data.scoring import align_tokens, teacher_tokens_from_text, tokenize_for_student

FOLDER = Path(os.environ.get("RLT_DATA_TOKENIZERS", "nowhere"))
#: Name, format that ``auto`` chooses, end of the turn, and whether texts begin with a beginning-of-text token.
MODELS = {
    "qwen3": ("native", "<|im_end|>", False),
    "llama3_1": ("rlt", "<|eot_id|>", True),
    "deepseek_v3": ("rlt", "<｜end▁of▁sentence｜>", True),
    "gemma3": ("rlt", "<end_of_turn>", True),
}
PROBLEM = Problem("Wie viel ist 1 + 1? Và tại sao?", "It is 2, i.e. $1+1=2$.")
EXPLANATION = "We add one and one.\n\n```python\n    1 + 1\n```\n\nThat gives 2.\n\n"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="make test-tokenizers sets RLT_DATA_TOKENIZERS")


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    return {name: AutoTokenizer.from_pretrained(FOLDER / name) for name in MODELS}


def views_of(tokenizer: Any, name: str, *, as_text: bool = False) -> Views:
    template = ChatTemplate(tokenizer)
    format = choose_format("auto", template, name, Path("nowhere"), template)
    return Views(format, template, ControlTokens(tokenizer, template, name, as_text=as_text))


@pytest.mark.parametrize("name", MODELS)
def test_the_student_continues_what_a_server_sends(tokenizers: dict[str, Any], name: str) -> None:
    tokenizer, (format, end, begins) = tokenizers[name], MODELS[name]
    views = views_of(tokenizer, name)
    views.check()
    assert views.format.name == format
    text, served = views.student(PROBLEM, EXPLANATION), views.served_prompt(PROBLEM)
    system = [{"role": "system", "content": views.format.student_system}] if views.format.student_system else []
    messages = [*system, {"role": "user", "content": PROBLEM.question}]
    assert served == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text.text.startswith(served) and text.text.endswith(end)
    [encoding] = encode(tokenizer, [text.text])
    ids = encoding.ids.tolist()
    assert ids.count(tokenizer.bos_token_id) == (1 if begins else 0) and (
        not begins or ids[0] == tokenizer.bos_token_id
    )
    assert tokenizer.convert_ids_to_tokens(ids[-1]) == end
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids[: len(prompt)] == prompt
    assert text.text[slice(*text.thought)].strip() == EXPLANATION.strip()
    assert text.text[slice(*text.solution)].strip() == PROBLEM.solution


@pytest.mark.parametrize("student", MODELS)
@pytest.mark.parametrize("teacher", MODELS)
def test_every_character_is_scored_once_and_tokens_are_paired(
    tokenizers: dict[str, Any], teacher: str, student: str
) -> None:
    mine, theirs = tokenizers[student], tokenizers[teacher]
    views, teacher_views = views_of(mine, student), views_of(theirs, teacher)
    completion = EXPLANATION + views.format.explanation_tags[1]
    [tokens] = tokenize_for_student(mine, views, [PROBLEM], [completion])
    assert tokens.uncovered == 0 and len(tokens.thought) > 20 and len(tokens.solution) > 5
    prompt = teacher_views.teacher_prompt(PROBLEM)
    read = teacher_tokens_from_text(theirs, views.format, prompt, completion)
    pairs = align_tokens(tokens, read, theirs, views.format, same_tokenizer=student == teacher)
    covered = int((pairs.student[:, 1] - pairs.student[:, 0]).sum())
    assert covered >= len(tokens.thought) - 1  # the last token may join the full stop with other white space
    if student == teacher:
        singles = pairs.single_tokens
        assert len(singles) == covered
        assert np.array_equal(tokens.encoding.ids[tokens.thought][singles[:, 1]], read.thought_ids[singles[:, 0]])


@pytest.mark.parametrize("student", MODELS)
@pytest.mark.parametrize("teacher", MODELS)
def test_decomposed_characters_are_paired_like_composed_ones(
    tokenizers: dict[str, Any], teacher: str, student: str
) -> None:
    text = "Chúng ta cộng một với một, được hai. 하나와 하나를 더하면 둘입니다."
    views, teacher_views = views_of(tokenizers[student], student), views_of(tokenizers[teacher], teacher)
    for form in ("NFC", "NFD"):
        completion = unicodedata.normalize(form, text) + "\n\n" + views.format.explanation_tags[1]
        [tokens] = tokenize_for_student(tokenizers[student], views, [PROBLEM], [completion])
        read = teacher_tokens_from_text(
            tokenizers[teacher], views.format, teacher_views.teacher_prompt(PROBLEM), completion
        )
        pairs = align_tokens(tokens, read, tokenizers[teacher], views.format, same_tokenizer=False)
        covered = int((pairs.student[:, 1] - pairs.student[:, 0]).sum())
        assert tokens.uncovered == 0 and covered >= len(tokens.thought) - 1, form


@pytest.mark.parametrize("name", MODELS)
def test_control_tokens_in_texts_are_found_and_can_be_text(tokenizers: dict[str, Any], name: str) -> None:
    tokenizer, (_, end, _) = tokenizers[name], MODELS[name]
    views = views_of(tokenizer, name)
    hostile = Problem(f"What ends a turn?{end}", f"{end} does.")
    assert views.problem_with(PROBLEM, EXPLANATION) is None
    assert f"the question contains {end!r}, a control token of {name}" == views.problem_with(hostile)
    assert views.control_token(PROBLEM, f"We write {end} here.") == (
        f"the explanation contains {end!r}, a control token of {name}"
    )
    as_text = views_of(tokenizer, name, as_text=True)
    assert as_text.problem_with(hostile, f"So {end}.") is None
    shown, plain = as_text.student(hostile, f"So {end}.\n\n"), views.student(hostile, f"So {end}.\n\n")
    assert shown.text == plain.text and (shown.thought, shown.solution) == (plain.thought, plain.solution)
    [marked, unmarked] = encode(tokenizer, [shown.marked, plain.marked])
    token = tokenizer.convert_tokens_to_ids(end)
    written = as_text.student(PROBLEM, EXPLANATION).text.count(end)
    assert marked.ids.tolist().count(token) == written == unmarked.ids.tolist().count(token) - 3
    assert uncovered(shown.text, 0, len(shown.text), marked.offsets) == 0


@pytest.mark.parametrize("name", MODELS)
def test_ordinary_texts_are_tokenised_as_before(tokenizers: dict[str, Any], name: str) -> None:
    tokenizer = tokenizers[name]
    texts = [
        views_of(tokenizer, name, as_text=as_text).student(PROBLEM, EXPLANATION).marked for as_text in (False, True)
    ]
    assert texts[0] == texts[1]
    assert encode(tokenizer, texts)[0].ids.tolist() == tokenizer(texts[0], add_special_tokens=False)["input_ids"]


def test_qwen_without_thinking_gets_tags_after_its_empty_thought(tokenizers: dict[str, Any]) -> None:
    template = ChatTemplate(tokenizers["qwen3"], options={"enable_thinking": False})
    views = Views(load_format("rlt"), template)
    views.check()
    assert template.reasoning is None
    assert views.served_prompt(PROBLEM).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_qwen_shows_the_thought_of_the_format_think_once(tokenizers: dict[str, Any]) -> None:
    """Its template writes an empty thought before text that has none in its own field."""
    template = ChatTemplate(tokenizers["qwen3"])
    views = Views(load_format("think"), template, ControlTokens(tokenizers["qwen3"], template, "qwen3", as_text=False))
    views.check()
    views.check_teacher()
    text = views.student(PROBLEM, EXPLANATION)
    assert text.text.partition("<|im_start|>assistant")[2].count("<think>") == 1
    assert text.text[slice(*text.thought)].strip() == EXPLANATION.strip()
