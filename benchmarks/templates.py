"""How every text template that TRL ships is read: python -m benchmarks.templates > docs/results/templates.md"""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from rlt_data.engines import find_checkpoint
from rlt_data.errors import ModelError
from rlt_data.formats import ChatTemplate, Problem, Views, choose_format

PROBLEM, EXPLANATION = Problem("QUESTION", "SOLUTION"), "THOUGHT\n\n"


def row(tokenizer: Any, file: Path) -> list[str]:
    """Return a row of the table."""
    try:
        template = ChatTemplate(tokenizer, str(file))
        format = choose_format("auto", template, file.stem, Path("nowhere"), template)
        views = Views(format, template)
        views.check()
    except ModelError:
        return [file.stem, "refused: takes content in parts only", *[""] * 5]
    text, served = views.student(PROBLEM, EXPLANATION), views.served_prompt(PROBLEM)
    assert text.text.startswith(served) and text.text.endswith(template.end)
    assert text.text[slice(*text.thought)].strip() == "THOUGHT"
    assert text.text[slice(*text.solution)].strip() == "SOLUTION"
    assert text.text.count("<bos>") == served.count("<bos>") <= 1
    prompt, message = served[served.rindex("QUESTION") + len("QUESTION") :], text.text[len(served) :]
    if not format.native:
        message = "tags"
    system = "in the question" if template.merges_system else "yes"
    end = template.end if template.has_end else f"{template.end} (the model's)"
    return [file.stem, format.name, system, code(prompt), code(message), code(end), views.rendering["messages"]]


def code(text: str) -> str:
    """Return a text as code for a table cell."""
    return "`" + text.replace("\n", "\\n").replace("|", "\\|") + "`"


def main() -> None:
    """Print the table."""
    spec = find_spec("trl")
    assert spec is not None and spec.origin is not None
    files = sorted((Path(spec.origin).parent / "chat_templates").glob("*.jinja"))
    tokenizer = AutoTokenizer.from_pretrained(find_checkpoint("nano-student").folder)
    names = [
        "template",
        "format",
        "system role",
        "end of the prompt",
        "student's message",
        "end of the turn",
        "messages",
    ]
    rows = [row(tokenizer, file) for file in files if not file.stem.endswith("_training")]
    print(f"""# Chat templates

The {len(rows)} chat templates of TRL {version("trl")} (variants for training left out), with the tokenizer of a
miniature model. `python -m benchmarks.templates` prints this page and checks each row: the served prompt is a prefix of
the student's text, the ranges of thought and solution are right, the text begins at most once, and the turn ends.
*messages* says how the template renders rows of `distill --shape messages`: `equal` to the scored text; it `differs`,
which `distill` announces; or it `drops` the thought, which `distill` refuses.
""")
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    print("\n".join("| " + " | ".join(cells) + " |" for cells in rows))


if __name__ == "__main__":
    main()
