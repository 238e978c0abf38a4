"""Workflows, templates and metadata agree with the Makefile, the scripts and pyproject.toml."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.M))
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").glob("*.yml")}


def steps(workflow: str) -> list[dict[str, Any]]:
    return [step for job in WORKFLOWS[workflow]["jobs"].values() for step in job["steps"]]


def commands(workflow: str) -> str:
    return "\n".join(step.get("run", "") for step in steps(workflow))


@pytest.mark.parametrize("file", ["CONTRIBUTING.md", "RELEASING.md", *(f"workflows/{name}" for name in WORKFLOWS)])
def test_every_make_command_exists(file: str) -> None:
    text = commands(file.removeprefix("workflows/")) if file.startswith("workflows/") else (ROOT / file).read_text()
    text = "\n".join(re.findall(r"`([^`]+)`", text)) + text if file.endswith(".md") else text
    for line in re.findall(r"(?:^|`)make (.+?)(?:`|$|  #)", text, re.M):
        words = [word for word in shlex.split(line) if "=" not in word]
        assert words and set(words) <= TARGETS, line


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_every_file_that_a_workflow_names_exists(workflow: str) -> None:
    named = re.findall(r"(?:constraints|scripts|tests)/[\w./-]*\w", commands(workflow))
    named += [step["with"]["cache-dependency-path"] for step in steps(workflow) if step.get("with", {}).get("cache")]
    assert all((ROOT / name).exists() for name in named), named


def test_ci_covers_the_python_versions_of_the_classifiers_and_of_the_setup_script() -> None:
    matches = [re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", text) for text in PROJECT["classifiers"]]
    versions = [match[1] for match in matches if match]
    assert WORKFLOWS["ci"]["jobs"]["test"]["strategy"]["matrix"]["python"] == versions
    assert {"ubuntu-latest", "macos-latest", "windows-latest"} == {
        *WORKFLOWS["ci"]["jobs"]["core"]["strategy"]["matrix"]["os"]
    }
    script = (ROOT / "scripts" / "find-python.sh").read_text()
    assert " | ".join(f"{version}.*" for version in versions) in script


def test_only_the_publishing_job_may_ask_for_an_identity() -> None:
    for workflow in WORKFLOWS.values():
        assert workflow["permissions"] == {"contents": "read"}
        for name, job in workflow["jobs"].items():
            assert job.get("permissions", {}) == ({"id-token": "write"} if name == "publish" else {})
            assert job["timeout-minutes"]


def test_windows_gets_the_symbolic_links_and_unix_line_ends() -> None:
    """The workflow must enable links before checkout, and Git must know that they lead to folders."""
    links = [path.relative_to(ROOT).as_posix() for path in (ROOT / "rlt_data").iterdir() if path.is_symlink()]
    attributes = (ROOT / ".gitattributes").read_text()
    assert links and all(f"{link} symlink=dir" in attributes for link in links)
    assert "* text=auto eol=lf" in attributes
    core = WORKFLOWS["ci"]["jobs"]["core"]["steps"]
    assert "core.symlinks true" in core[0]["run"] and core[1]["uses"].startswith("actions/checkout@")


def test_the_citation_has_the_version_and_license_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert citation["references"][0]["url"] == PROJECT["urls"]["Paper"]


def test_the_guide_shows_exactly_ten_rewritten_sentences() -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text().split("| before | after |\n|---|---|\n")[1].split("\n\n")[0]
    assert len(table.splitlines()) == 10


@pytest.mark.parametrize("file", ["core", "dev", "gpu", "rl"])
def test_one_version_of_a_package_fits_every_python(file: str) -> None:
    """The constraints have no markers, so CI tests the same versions with each Python."""
    lines = (ROOT / "constraints" / f"{file}.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", line) for line in lines)
    assert len({line.split("==")[0].lower() for line in lines}) == len(lines)
