"""The texts around the question of an evaluation: those of lighteval, and of a file."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from rlt_data.errors import InputError, SettingsError
from rlt_data.formats import load_format
from rlt_data.tasks.benchmarks import BENCHMARKS
from rlt_data.tasks.grading import grade
from rlt_data.tasks.prompts import Prompts, load_prompts

#: A module in the layout of lighteval's, with texts of our own. Its imports cannot be satisfied.
_MODULE = '''
from no_such_package import Doc

OUR_TEMPLATE = dedent("""
Work it out, and box it: $\\\\boxed{{X}}$.

{prompt}
""")
OTHER = no_such_name


def aime_prompt(line, task_name: str = None):
    return Doc(task_name=task_name, query=OUR_TEMPLATE.format(prompt=line["problem"]), choices=[line["answer"]])
'''
_CHOICES = """
def gpqa_instruct_prompt(line, task_name: str = None):
    gold = random.randint(0, 3)
    choices = [line["Incorrect Answer 1"], line["Incorrect Answer 2"], line["Incorrect Answer 3"]]
    choices.insert(gold, line["Correct Answer"])
    text = "Pick one.\\n\\n{q}\\n\\n" + LAYOUT
    a, b, c, d = [choice.strip() for choice in choices]
    query = text.format(q=line["Question"].strip(), A=a, B=b, C=c, D=d)
    return Doc(query=query, choices=list(ascii_uppercase)[:4], instruction="Pick one.")
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of an installed lighteval, in which tests write modules."""
    folder = tmp_path / "site" / "lighteval" / "tasks" / "tasks"
    folder.mkdir(parents=True)
    (tmp_path / "site" / "lighteval" / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    info = tmp_path / "site" / "lighteval-0.13.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lighteval\nVersion: 0.13.9\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return folder


def test_a_prompt_of_lighteval_is_read_without_its_imports(installed: Path) -> None:
    (installed / "aime.py").write_text(_MODULE)
    template = "\nWork it out, and box it: $\\boxed{X}$.\n\n{question}\n"
    assert load_prompts("lighteval", "aime24") == Prompts("lighteval", "0.13.9", template)


def test_the_choices_of_lighteval_are_part_of_the_question(installed: Path) -> None:
    (installed / "gpqa.py").write_text(_CHOICES.replace("LAYOUT", repr("A) {A}\nB) {B}\nC) {C}\nD) {D}")))
    prompts = load_prompts("lighteval", "gpqa-diamond")
    assert prompts.question_template == "Pick one.{question}"  # as lighteval joins them
    choices = {f"Incorrect Answer {number}": f"no {number}" for number in (1, 2, 3)}
    question, letter, _ = BENCHMARKS["gpqa-diamond"].row({"Question": " Which? ", "Correct Answer": "right", **choices})
    assert question.startswith("Which?\n\nA) ") and f"\n{letter}) right" in question
    format = prompts.applied_to(load_format("rlt"), "gpqa-diamond")
    assert format.student_question(question) == f"Pick one.{question}"
    own = Prompts("rlt").applied_to(load_format("rlt"), "gpqa-diamond")
    assert own.student_question(question) == f"{question}\n\nAnswer with the letter of the right choice."


@pytest.mark.parametrize(
    ("file", "text", "benchmark", "reason"),
    [
        ("aime.py", "aime_prompt = None", "aime24", "KeyError"),
        ("aime.py", "def aime_prompt(line): return undefined", "aime24", "NameError"),
        ("aime.py", "def aime_prompt(line): return Doc(query='no question')", "aime24", "another layout"),
        ("gpqa.py", _CHOICES.replace("LAYOUT", repr("({A}) ({B}) ({C}) ({D})")), "gpqa-diamond", "another layout"),
        ("other.py", "", "gsm8k", "FileNotFoundError"),
    ],
)
def test_another_version_of_lighteval_is_refused(
    installed: Path, file: str, text: str, benchmark: str, reason: str
) -> None:
    (installed / file).write_text(text)
    with pytest.raises(SettingsError, match=f"lighteval 0.13.9 .*{reason}.*lighteval==0.13.0") as error:
        load_prompts("lighteval", benchmark)
    assert "\n" not in str(error.value)


def test_what_lighteval_lacks_is_said(installed: Path) -> None:
    with pytest.raises(SettingsError, match="no prompt for --benchmark countdown; takes aime24, "):
        load_prompts("lighteval", "countdown")


@pytest.mark.skipif(find_spec("lighteval") is not None, reason="lighteval is installed")
def test_a_missing_lighteval_is_said() -> None:
    with pytest.raises(SettingsError, match="pip install --no-deps lighteval==0.13.0"):
        load_prompts("lighteval", "aime24")


@pytest.mark.skipif(find_spec("lighteval") is None, reason="needs lighteval")
@pytest.mark.parametrize("benchmark", ["aime24", "gpqa-diamond", "gsm8k", "math500"])
def test_the_installed_lighteval_is_read(benchmark: str) -> None:
    prompts = load_prompts("lighteval", benchmark)
    assert prompts.question_template and prompts.question_template.count("{question}") == 1 and prompts.version


def test_a_file_replaces_texts_of_the_format(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("question_template: 'Q: {question}'\nsolver_system: ''\n")
    format = load_prompts(str(file), "math").applied_to(load_format("rlt"), "math")
    assert (format.student_question("x"), format.solver_text) == ("Q: x", "")
    file.write_text("solver_system: Think.")
    format = load_prompts(str(file), "math").applied_to(load_format("rlt"), "math")
    assert (format.student_question("x"), format.solver_text) == ("x", "Think.")
    assert format.hash != load_format("rlt").hash


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"question_template: no place", "must contain {question} once"),
        (b"name: rlt", "must be a YAML mapping with texts under question_template or solver_system"),
        (b"solver_system: 3", "must be a YAML mapping"),
        (b"- a", "must be a YAML mapping"),
        (b"a: [", "not YAML"),
        (b"\xff", "not UTF-8 at byte 1"),
    ],
)
def test_a_wrong_file_gets_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError) as error:
        load_prompts(str(file), "math")
    assert reason in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(SettingsError, match="neither rlt, lighteval nor a YAML file"):
        load_prompts(str(tmp_path / "none.yaml"), "math")


@pytest.mark.parametrize(
    ("kind", "answer", "gold"),
    [
        ("math", "We add. Therefore, the final answer is: $\\boxed{33}$. I hope it is correct", "033"),
        ("math", "First \\boxed{1}, then\n\nANSWER: $\\frac{1}{2}$", "0.5"),
        ("math", "So 40 + 2.\n\nANSWER: 42", "42"),
        ("math", "So \\boxed{\\frac{1}{2}}.", "\\frac12"),
        ("choice", "A is wrong, so B.\n\nAnswer: B", "B"),
        ("choice", "A is wrong.\n\n**Answer: (C)**", "C"),
    ],
)
def test_answers_to_other_prompts_are_found_without_our_tags(kind: str, answer: str, gold: str) -> None:
    pytest.importorskip("math_verify", reason="needs the extra eval")
    assert grade(kind, answer, gold).correct  # type: ignore[arg-type]
