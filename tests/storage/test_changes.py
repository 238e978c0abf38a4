from __future__ import annotations

from typing import Any

from rlt_data.storage.changes import describe_changes

Entry = dict[str, Any]


def entry(
    student: str, weights: str = "w", tokenizer: str = "t", revision: str | None = None, **settings: Any
) -> Entry:
    model = {"name": student, "revision": revision, "weights": weights, "tokenizer": tokenizer}
    depends_on = {"student": f"{weights}-{tokenizer}", **settings}
    return {"depends_on": depends_on, "models": {"student": model}, "format": {"name": "rlt"}}


def test_models_are_named_and_not_hashed() -> None:
    before, now = entry("org/model", weights="aaaa", temperature=1.0), entry("nano", weights="bbbb", temperature=0.7)
    assert describe_changes(before, now) == "student was 'org/model', now 'nano'; temperature was 1.0, now 0.7"
    assert describe_changes(now, now) == ""


def test_models_of_the_same_name_differ_by_revision_or_by_content() -> None:
    first = entry("org/model", weights="aaaa", revision="0123")
    text = describe_changes(first, entry("org/model", weights="bbbb", revision="4567"))
    assert "0123" in text and "4567" in text and "aaaa" not in text
    for changed, part in [(entry("m", weights="bbbb"), "weights"), (entry("m", tokenizer="bbbb"), "tokenizer")]:
        text = describe_changes(entry("m"), changed)
        assert "'m'" in text and part in text and "bbbb" not in text and "was" not in text


def test_formats_templates_and_teachers_are_described_without_hashes() -> None:
    before = entry("m", format="aaaa", chat_template="cccc", teacher="eeee-ffff")
    now = entry("m", format="bbbb", chat_template="dddd", teacher="none")
    same_name = describe_changes(before, now)
    other_name = describe_changes(before, now | {"format": {"name": "think"}})
    assert "format 'rlt'" in same_name and "format was 'rlt', now 'think'" in other_name
    for text in (same_name, other_name):
        assert "chat template" in text and "'none'" in text
        assert not any(value in text for value in ("aaaa", "bbbb", "cccc", "dddd", "eeee"))
