"""What the documents say is what the code has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlt_data import errors
from rlt_data.cli.main import app
from rlt_data.errors import RltDataError
from rlt_data.formats.schema import BUILT_IN, Format
from rlt_data.plugins import PRESETS
from rlt_data.storage.schemas import SCHEMAS

ROOT = Path(__file__).parent.parent
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "recipes").glob("*/README.md"))]


def section(file: str, heading: str) -> str:
    text = (ROOT / file).read_text()
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("table", SCHEMAS)
def test_every_column_is_explained(table: str) -> None:
    assert set(SCHEMAS[table].names) == {
        name for line in section("docs/tables.md", table).splitlines() for name in re.findall("`([a-z_]+)`", line[:90])
    } & set(SCHEMAS[table].names)


def test_every_key_of_a_format_and_every_preset_is_explained() -> None:
    text = (ROOT / "docs" / "formats.md").read_text()
    assert all(f"`{name}`" in text for name in [*Format.model_fields, *BUILT_IN])
    text = (ROOT / "docs" / "inputs.md").read_text()
    assert all(f"`{name}`" in text for name in PRESETS.built_in)


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", document.read_text()):
        file = document.parent / target if target else document
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


def anchors(file: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a Markdown file."""
    text = re.sub(r"^```.*?^```", "", file.read_text(), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_command_and_exit_code_is_explained() -> None:
    commands = section("README.md", "Commands")
    for command in app.registered_commands:
        assert command.callback is not None
        assert re.search(rf"`{command.name or command.callback.__name__}[ `]", commands)
    assert all(f"`{group.name} " in commands for group in app.registered_groups)
    codes_table = section("docs/troubleshooting.md", "Exit codes")
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RltDataError)]
    codes = {kind.exit_code for kind in kinds if kind is not RltDataError}
    for code in {0, errors.SOME_ROWS_FAILED, errors.INTERRUPTED, *codes}:
        assert re.search(rf"^\| {code} \|", codes_table, re.M), code


def test_the_layout_in_the_design_is_complete() -> None:
    layout = section("docs/design.md", "Layout")
    for path in (ROOT / "rlt_data").iterdir():
        if path.name not in ("__init__.py", "py.typed", "__pycache__"):
            assert re.search(rf"^  {path.name}/? ", layout, re.M), path.name
