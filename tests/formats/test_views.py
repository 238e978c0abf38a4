from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from rlt_data.errors import ModelError, SettingsError
from rlt_data.formats import BUILT_IN, ChatTemplate, Problem, Views, encode, load_format, tokens_inside
from rlt_data.formats import template as template_module
from rlt_data.formats.views import read_completion

TRIMMING = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system text please') }}{% endif %}" + TRIMMING
)
RETHINKING = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}[assistant] <think>\n\n</think>\n\n"
    "{{ message['content'].split('</think>')[-1].lstrip('\n') }}\n{% else %}[{{ message['role'] }}] "
    "{{ message['content'] }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)


def _tokenizer(path: Path) -> Any:
    return AutoTokenizer.from_pretrained(path)


@pytest.mark.parametrize("kind", ["chat", "base", "sliding"])
@pytest.mark.parametrize("name", [name for name in BUILT_IN if name != "native"])
def test_the_contents_are_where_the_views_say(tiny: Callable[..., Path], kind: str, name: str) -> None:
    tokenizer, format = _tokenizer(tiny(kind)), load_format(name)
    views = Views(format, ChatTemplate(tokenizer))
    views.check()
    shown = views.student(Problem("What is 1 + 1?", "It is 2."), "We add." + format.padding)
    assert shown.text[slice(*shown.thought)] == format.padding + "We add." + format.padding
    assert shown.text[slice(*shown.solution)] == format.solution_padding + "It is 2." + format.solution_padding
    prompt = views.teacher_prompt(Problem("What is 1 + 1?", "It is 2."))
    assert prompt.endswith(format.explanation_tags[0] + format.padding)
    assert prompt.count("What is 1 + 1?") == 1 and prompt.count("It is 2.") == 1
    solver = views.solver_prompt("What is 1 + 1?")
    assert shown.text.startswith(solver) and "It is 2." not in solver
    assert prompt.count(format.explanation_tags[0]) == 2 + len(format.shots)  # the system text says it once


@pytest.mark.parametrize("kind", ["chat", "base", "sliding"])
def test_there_is_one_beginning_of_text_and_only_where_the_tokenizer_wants_one(
    tiny: Callable[..., Path], kind: str
) -> None:
    tokenizer = _tokenizer(tiny(kind))
    views = Views(load_format("rlt"), ChatTemplate(tokenizer))
    ids = encode(tokenizer, [views.teacher_prompt(Problem("1 + 1?", "2"))])[0].ids.tolist()
    assert ids.count(tokenizer.bos_token_id) == (0 if kind == "chat" else 1)
    assert (ids[0] == tokenizer.bos_token_id) == (kind != "chat")


def test_the_oracle_format_is_rendered_as_described(tiny: Callable[..., Path], tmp_path: Path) -> None:
    file = tmp_path / "bare.yaml"
    file.write_text("extends: rlt\nname: bare\nsolution_padding: ''\n")
    views = Views(load_format(str(file)), ChatTemplate(_tokenizer(tiny())))
    shown = views.student(Problem("Q", "S"), "T")
    assert shown.text.endswith(
        "<|im_start|>assistant\n<|begin_of_thought|>\n\nT<|end_of_thought|>\n\n"
        "<|begin_of_solution|>S<|end_of_solution|><|im_end|>"
    )
    assert views.teacher_prompt(Problem("Q", "S")).endswith(
        "<|im_start|>assistant\n<|begin_of_solution|>S<|end_of_solution|>\n\n<|begin_of_explanation|>\n\n"
    )


def test_padding_keeps_the_edges_of_contents_out_of_the_tags_tokens(tiny: Callable[..., Path]) -> None:
    tokenizer = _tokenizer(tiny())
    shown = Views(load_format("rlt"), ChatTemplate(tokenizer)).student(Problem("Q", "-3"), "...\n\n")
    [encoding] = encode(tokenizer, [shown.text])
    scored = [shown.text[slice(*encoding.offsets[i])] for i in tokens_inside(encoding, *shown.solution)]
    assert "".join(scored).strip() == "-3"


def test_a_template_without_system_text_gets_it_in_the_question(tiny: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "no_system.jinja").write_text(NO_SYSTEM)
    template = ChatTemplate(_tokenizer(tiny()), str(tmp_path / "no_system.jinja"))
    assert template.merges_system
    before, after = template.split([{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}])
    assert before == "[user] S\n\nQ\n[assistant] " and after == "\n"


def test_a_template_that_leaves_the_system_text_out_is_refused(tiny: Callable[..., Path], tmp_path: Path) -> None:
    text = "{% for message in messages if message.role != 'system' %}{{ message.content }}\n{% endfor %}"
    template = ChatTemplate(_tokenizer(tiny()), write(tmp_path, text))
    views = Views(load_format("rlt"), template)
    for check in (views.check, views.check_teacher):
        with pytest.raises(ModelError, match="omits or changes the system text; use --chat-template plain"):
            check()


def test_a_template_that_shows_the_system_text_only_before_the_last_question(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """Templates of early Mistral models omit it if an assistant's message follows, as in a prefilled answer."""
    text = (
        "{% for message in messages if message.role != 'system' %}{% if message.role == 'user' and loop.last and "
        "messages[0].role == 'system' %}{{ messages[0].content }}\n{% endif %}{{ message.content }}\n{% endfor %}"
    )
    format = load_format("rlt")
    views = Views(format, ChatTemplate(_tokenizer(tiny()), write(tmp_path, text)))
    views.check()
    assert views.teacher_prompt(Problem("What?", "S")).startswith(format.teacher_system + "\nWhat?\n")


def test_a_template_that_strips_white_space_keeps_the_texts(tiny: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "trimming.jinja").write_text(TRIMMING)
    views = Views(load_format("rlt"), ChatTemplate(_tokenizer(tiny()), str(tmp_path / "trimming.jinja")))
    views.check()
    assert views.teacher_prompt(Problem("Q", "S")).endswith(
        "<|begin_of_explanation|>\n\n"
    )  # the prefill is not trimmed


def test_a_template_that_rewrites_thoughts_does_not_change_the_student_text(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """The student continues the generation prompt, whatever the template makes of earlier turns."""
    (tmp_path / "rethinking.jinja").write_text(RETHINKING)
    views = Views(load_format("think"), ChatTemplate(_tokenizer(tiny()), str(tmp_path / "rethinking.jinja")))
    views.check()
    shown = views.student(Problem("Q", "S"), "T\n")
    assert shown.text.endswith("[user] Q\n[assistant] <think>\nT\n</think>\n\n<answer>\nS\n</answer><|im_end|>")
    assert views.rendering == {"messages": "drops", "inline": "drops"}


def test_a_missing_template_file_and_a_template_that_omits_the_answer(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="'plain'"):
        ChatTemplate(_tokenizer(tiny()), "nowhere.jinja")
    (tmp_path / "mute.jinja").write_text("{{ messages[0]['content'] }}")
    with pytest.raises(ModelError, match="omits the assistant's text"):
        ChatTemplate(_tokenizer(tiny()), str(tmp_path / "mute.jinja"))


def test_plain_replaces_the_template_of_a_model(tiny: Callable[..., Path]) -> None:
    template = ChatTemplate(_tokenizer(tiny()), "plain")
    before, after = template.split([{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}])
    assert before == "S\n\n### Question\n\nQ\n\n### Answer\n\n" and after == "<|im_end|>"


@pytest.mark.parametrize(
    ("completion", "text", "closed", "tag"),
    [
        ("a <|end_of_explanation|> b", "a ", True, None),
        ("a", "a", False, None),
        ("<|end_of_explanation|>a<|end_of_explanation|>", "", True, None),
        ("a <|END_OF_EXPLANATION|>", "a <|END_OF_EXPLANATION|>", False, None),
        ("a <|end_of_thought|> b <|end_of_explanation|>", "a <|end_of_thought|> b ", True, "<|end_of_thought|>"),
        ("a <|begin_of_explanation|> b", "a <|begin_of_explanation|> b", False, "<|begin_of_explanation|>"),
    ],
)
def test_a_completion_is_split_at_its_first_closing_tag(
    completion: str, text: str, closed: bool, tag: str | None
) -> None:
    explanation = read_completion(load_format("rlt"), completion)
    assert (explanation.text, explanation.closed, explanation.holds_tag) == (text, closed, tag)


# Templates that will not do


def write(folder: Path, text: str) -> str:
    path = folder / "template.jinja"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("template", "message"),
    {
        "{% for message in messages if message.role != 'user' %}{{ message.content }}\n{% endfor %}":
            "omits or changes the user text",
        "{{ 10 ** 400 * 1.5 }}": "cannot render a conversation \\(int too large to convert to float\\)",
        "{{ messages[0] + 1 }}": "cannot render a conversation \\(unsupported operand",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}": "a conversation \\(maximum recursion",
        "{% if %}": "cannot render a conversation",
        "{% for a in range(99999) %}{% for b in range(300) %}{% endfor %}{% endfor %}": "takes more than 0.3 s",
    }.items(),
)  # fmt: skip
def test_templates_that_omit_a_text_or_fail_are_refused_in_one_line(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, message: str
) -> None:
    monkeypatch.setattr(template_module, "_PROBE_SECONDS", 0.3)
    with pytest.raises(ModelError, match=message) as error:
        ChatTemplate(_tokenizer(tiny()), write(tmp_path, template))
    assert "\n" not in str(error.value)


def test_a_template_that_fails_on_some_texts_only(tiny: Callable[..., Path], tmp_path: Path) -> None:
    text = "{% if 'trap' in messages | map(attribute='content') | join %}{{ 1 // 0 }}{% endif %}" + TRIMMING
    views = Views(load_format("rlt"), ChatTemplate(_tokenizer(tiny()), write(tmp_path, text)))
    assert "What?" in views.teacher_prompt(Problem("What?", "S"))
    with pytest.raises(ModelError, match="cannot render a conversation \\(integer division or modulo by zero\\)"):
        views.teacher_prompt(Problem("a trap", "S"))


def test_a_template_that_drops_the_messages_before_the_last_question(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Its prompts contain the instructions and the question, but no examples of the format."""
    text = "{{ messages[0].content }}{% for message in messages[-2:] %}\n{{ message.content }}{% endfor %}"
    template = ChatTemplate(_tokenizer(tiny()), write(tmp_path, text))
    Views(load_format("rlt"), template).teacher_prompt(Problem("Q", "S"))
    shots = Views(load_format("rlt-shots"), template)
    for ask in (lambda: shots.teacher_prompt(Problem("Q", "S")), shots.check):
        with pytest.raises(ModelError, match="omits or changes the user text"):
            ask()


def test_a_template_file_that_is_not_text(tiny: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "binary.jinja").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="--chat-template: .*binary.jinja: "):
        ChatTemplate(_tokenizer(tiny()), str(tmp_path / "binary.jinja"))
