"""Chat templates of current models, as TRL ships them, with the tokenizer of a miniature model."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from rlt_data.errors import ModelError, SettingsError
from rlt_data.formats import ChatTemplate, Format, Problem, Views, choose_format, load_format
from rlt_data.settings import ModelSettings, parse_settings

spec = find_spec("trl")
FOLDER = Path(str(spec.origin)).parent / "chat_templates" if spec else Path("nowhere")
#: Templates of models that read pictures; they take content in parts.
PARTS = {"idefics3", "llava_next", "smolvlm"}
TEXT = sorted(path.stem for path in FOLDER.glob("*.jinja") if path.stem.removesuffix("_training") not in PARTS)

pytestmark = pytest.mark.skipif(not TEXT, reason="needs the extra train")

PROBLEM = Problem("What is 1 + 1?", "It is 2.")
EXPLANATION = "We add one and one.\n\nThat gives 2.\n\n"


@pytest.fixture(scope="module")
def tokenizer(tiny: Callable[..., Path]) -> Any:
    return AutoTokenizer.from_pretrained(tiny("sliding"))


def template_of(tokenizer: Any, name: str, **options: Any) -> ChatTemplate:
    return ChatTemplate(tokenizer, str(FOLDER / f"{name}.jinja"), **options)


def views_of(tokenizer: Any, name: str, format: Format | None = None, **options: Any) -> Views:
    template = template_of(tokenizer, name, **options)
    return Views(format or choose_format("auto", template, name, Path("nowhere"), template), template)


@pytest.mark.parametrize("name", TEXT)
def test_the_student_continues_what_a_server_sends(tokenizer: Any, name: str) -> None:
    views = views_of(tokenizer, name)
    views.check()
    text, served = views.student(PROBLEM, EXPLANATION), views.served_prompt(PROBLEM)
    system = [{"role": "system", "content": views.format.student_system}] if views.format.student_system else []
    if views.template.merges_system:
        system, question = [], f"{views.format.student_system}\n\n{PROBLEM.question}"
    else:
        question = PROBLEM.question
    if "strftime_now" not in views.template.text:
        source = (FOLDER / f"{name}.jinja").read_text()
        messages = [*system, {"role": "user", "content": question}]
        assert served == tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, chat_template=source
        )
    bos = tokenizer.bos_token
    assert text.text.startswith(served) and text.text.count(bos) == served.count(bos) <= 1
    assert text.text[slice(*text.thought)].strip() == EXPLANATION.strip()
    assert text.text[slice(*text.solution)].strip() == PROBLEM.solution
    assert text.text.endswith(views.template.end) and views.template.end.strip() == views.template.end != ""
    assert text.text.count(EXPLANATION.strip()) == text.text.count(PROBLEM.solution) == 1
    assert views.solver_prompt(PROBLEM.question) == served  # the built-in formats have one text for both


@pytest.mark.parametrize(
    ("name", "middle"),
    {
        "qwen3": "assistant\n[<think>\n{}\n</think>\n\n{}<|im_end|>",
        "qwen3_5_think": "assistant\n<think>\n[{}\n</think>\n\n{}<|im_end|>",
        "deepseek_r1_distill": "<｜Assistant｜><think>\n[{}\n</think>\n\n{}<｜end▁of▁sentence｜>",
        "deepseekv3": "<｜Assistant｜><think>\n[{}\n</think>\n\n{}<｜end▁of▁sentence｜>",
        "glm4moe": "<|assistant|>[\n<think>{}</think>\n{}<eos>",
        "nemotron_3_nano": "assistant\n<think>\n[{}\n</think>\n{}<|im_end|>",
        "gptoss": "<|start|>assistant[<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final"
        "<|message|>{}<|return|>",
    }.items(),
)
def test_native_thoughts_are_in_the_markup_of_the_model(tokenizer: Any, name: str, middle: str) -> None:
    """The bracket marks where the served prompt ends."""
    views = views_of(tokenizer, name)
    assert views.format.name == "native" and views.format.student_system == ""
    served, text = views.served_prompt(PROBLEM), views.student(PROBLEM, EXPLANATION).text
    assert (served + "[" + text[len(served) :]).endswith(middle.format(EXPLANATION.strip(), PROBLEM.solution))


@pytest.mark.parametrize("name", ["qwen2_5", "llama3_1", "gemma3", "phi3", "qwen3_instruct_2507", "qwen3_5_nothink"])
def test_a_model_that_does_not_reason_by_itself_gets_tags(tokenizer: Any, name: str) -> None:
    views = views_of(tokenizer, name)
    assert views.format.name == "rlt" and views.template.reasoning is None
    with pytest.raises(ModelError, match="has no reasoning markup that continues its generation prompt; use --format"):
        Views(load_format("native"), views.template).check()


def test_a_format_that_does_not_close_the_thought_of_the_prompt_is_refused(tokenizer: Any) -> None:
    for name in ("rlt", "think"):
        with pytest.raises(ModelError, match=f"opens a thought, which --format {name} does not close; use"):
            views_of(tokenizer, "qwen3_5_think", load_format(name)).check()
        views_of(tokenizer, "qwen3", load_format(name)).check()


def test_a_template_option_changes_the_prompt_the_markup_and_the_key(tokenizer: Any) -> None:
    off = views_of(tokenizer, "qwen3", options={"enable_thinking": False})
    assert off.format.name == "rlt" and off.served_prompt(PROBLEM).endswith("assistant\n<think>\n\n</think>\n\n")
    assert off.template.identity != template_of(tokenizer, "qwen3").identity
    assert template_of(tokenizer, "qwen3").identity == template_of(tokenizer, "qwen3").identity


@pytest.mark.parametrize("name", ["llama3_2", "gptoss", "muse_glimmer"])
def test_templates_that_print_the_date_see_a_fixed_one(tokenizer: Any, name: str) -> None:
    views, other = views_of(tokenizer, name), views_of(tokenizer, name, date="2031-12-09")
    served = views.served_prompt(PROBLEM)
    assert "2025" in served and "2031" in other.served_prompt(PROBLEM)
    assert views.template.identity != other.template.identity
    if name == "llama3_2":
        assert "Today Date: 01 Jan 2025" in served and "Today Date: 09 Dec 2031" in other.served_prompt(PROBLEM)


def test_a_turn_without_an_end_gets_the_end_of_text_token(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="rlt_data")
    assert not template_of(tokenizer, "glm4moe").has_end and template_of(tokenizer, "glm4moe").end == "<eos>"
    assert "does not end the assistant's turn; <eos>, the end-of-text token, does" in caplog.text
    caplog.clear()
    assert template_of(tokenizer, "qwen3").has_end and not caplog.text


@pytest.mark.parametrize("name", sorted(PARTS))
def test_templates_of_models_that_read_pictures_are_refused_in_one_line(tokenizer: Any, name: str) -> None:
    with pytest.raises(ModelError, match="omits or changes the user text"):
        views_of(tokenizer, name).check()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template_option": ["enable_thinking"]}, "'enable_thinking' is not of the form KEY=VALUE"),
        ({"template_option": ["messages=1"]}, "'messages' is set by rlt-data"),
        ({"template_option": ["a=1", "a=2"]}, "'a' is given twice"),
        ({"template_date": "31.12.2025"}, "must be a date such as 2025-01-01"),
    ],
)
def test_wrong_template_options_are_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_settings(ModelSettings, settings)


def test_template_options_are_json_or_text() -> None:
    options = ["off=False", "on=true", "level=3", "effort=high", "names=[1, 2]"]
    read = parse_settings(ModelSettings, {"template_option": options}).template_options
    assert read == {"off": False, "on": True, "level": 3, "effort": "high", "names": [1, 2]}
    assert parse_settings(ModelSettings, {"template_option": {"on": False}}).template_options == {"on": False}


def test_an_option_that_the_template_does_not_read_is_announced(
    tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    template_of(tokenizer, "qwen2_5", options={"enable_thinking": False})
    assert "does not read --template-option enable_thinking" in caplog.text
