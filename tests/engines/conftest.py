"""Completion servers for the tests of the server engine: one process serves all, a second one is for routing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engines.serving import ROOT, Process, running


def divided(student: Path, copy: Path) -> Path:
    """Make a copy of a student with the code in docs/engines.md."""
    [lines] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "engines.md").read_text(), re.S)
    lines = lines.replace('"Qwen/Qwen2.5-7B-Instruct"', repr(str(student))).replace('"student-0.7"', repr(str(copy)))
    exec(lines, {})
    return copy


@pytest.fixture(scope="session")
def servers(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, Process]]:
    """Start both processes in parallel."""
    copy = divided(tiny(), tmp_path_factory.mktemp("copy") / "copy")
    models = f"chat={tiny()}", f"base={tiny('base')}", f"copy={copy}"
    with running("completion_server", *models) as first, running("completion_server", models[0]) as second:
        yield first, second


@pytest.fixture(scope="session")
def server(servers: tuple[Process, Process]) -> Process:
    """Return a process with all kinds of servers, over a chat model, a base model and a copy of the chat model."""
    return servers[0]


@pytest.fixture(scope="session")
def second_server(servers: tuple[Process, Process]) -> Process:
    """Return another process over the chat model."""
    return servers[1]
