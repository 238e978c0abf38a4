from __future__ import annotations

import pytest

from rlt_data.inputs.thoughts import THOUGHT_TAGS, UnclosedThoughtError, split_thought


@pytest.mark.parametrize(("opening", "closing"), THOUGHT_TAGS)
def test_a_thought_in_tags_is_split_from_the_solution(opening: str, closing: str) -> None:
    for text in (
        f"{opening}\nOne.\n{closing}\n\nTwo.",
        f"{opening}One.{closing}Two.",
        f"  {opening} One. {closing} Two.",
        f"One.\n{closing}\n\nTwo.",
        f"One.{closing}Two.",
    ):
        assert split_thought(text) == ("One.", "Two."), text
    with pytest.raises(UnclosedThoughtError) as unclosed:
        split_thought(f"{opening}\nOne and")
    assert unclosed.value.thought == "One and"


@pytest.mark.parametrize(
    "text",
    [
        "No tags.",
        "Close it with </think> and go on.",
        "The tag `</think>` ends a thought.",
        'Write "</think>" there.',
        "First <think> comes.",
        "Write <answer>42</answer> on a line.\n\n    indented",
    ],
)
def test_a_text_that_mentions_a_tag_is_kept(text: str) -> None:
    assert split_thought(text) == (None, text)


@pytest.mark.parametrize(
    ("text", "thought", "solution"),
    [
        ("<think>Use `</think>`, not ` </think>`.</think>Done.", "Use `</think>`, not ` </think>`.", "Done."),
        ("<think>One.</think>Write `</think>`.", "One.", "Write `</think>`."),
        ("<think>\n\n</think>\n\nTwo.", None, "Two."),
        ("<think>One.</think><answer>Two.</answer>", "One.", "Two."),
        ("<think>One.</think>Write <answer>2</answer> there.", "One.", "Write <answer>2</answer> there."),
        ("<think>A</think><answer>2</answer> or <answer>3</answer>", "A", "<answer>2</answer> or <answer>3</answer>"),
        ("<|begin_of_thought|>One.<|end_of_thought|>Two.", "One.", "Two."),
        ("<|begin_of_thought|>One.<|end_of_thought|>\n<|begin_of_solution|>Two", "One.", "Two"),
        ("<think>One.</think>Two.<|end_of_solution|>", "One.", "Two."),
    ],
)  # fmt: skip
def test_only_enclosing_tags_count(text: str, thought: str | None, solution: str) -> None:
    assert split_thought(text) == (thought, solution)
