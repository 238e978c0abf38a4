"""The texts around the question of an evaluation: those of the format, of lighteval or of a file.

lighteval's texts are read from the installed package. Only the source of its prompt functions is compiled, because
importing its modules needs its dependencies, and these pin another version of a library of math-verify.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from string import ascii_uppercase
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

from rlt_data.errors import InputError, SettingsError, first_line
from rlt_data.formats import Format
from rlt_data.settings import parse_yaml
from rlt_data.tasks.benchmarks import BENCHMARKS, listed_choices

#: The version of lighteval whose layout is known.
_LIGHTEVAL_VERSION = "0.13.0"
#: Module and prompt function in lighteval's folder ``tasks/tasks``, by benchmark.
_LIGHTEVAL = {
    "aime24": ("aime", "aime_prompt"),
    "gpqa-diamond": ("gpqa", "gpqa_instruct_prompt"),
    "gsm8k": ("gsm8k", "gsm8k_prompt"),
    "math500": ("math_500", "math_500_prompt"),
}
_QUESTION, _CHOICE = "{question}", "RLTDATACHOICE"
#: The keys of a file of prompts, which are keys of a format.
_KEYS = ("question_template", "solver_system")


@dataclass(frozen=True)
class Prompts:
    """The texts that a model sees with a question.

    Attributes:
        source: ``rlt`` (``format NAME`` in records), ``lighteval``, or the name of a file.
        version: version of lighteval.
        question_template: user message, in which ``{question}`` is replaced by the question; None: the format's.
        solver_system: system text; empty for none. None: the format's.
    """

    source: str
    version: str | None = None
    question_template: str | None = None
    solver_system: str | None = None

    def applied_to(self, format: Format, benchmark: str) -> Format:
        """Return the format with these texts in place of its own."""
        template = self.question_template or format.student_question(BENCHMARKS[benchmark].template)
        system = format.solver_system if self.solver_system is None else self.solver_system
        return format.model_copy(update={"question_template": template, "solver_system": system})

    def completed(self, format: Format) -> Prompts:
        """Return all texts of the format that these were applied to, for records."""
        source = f"format {format.name}" if self.source == "rlt" else self.source
        return Prompts(source, self.version, format.question_template, format.solver_text)


def load_prompts(name: str, benchmark: str) -> Prompts:
    """Load the prompts of an evaluation.

    Args:
        name: ``rlt``, ``lighteval`` or a YAML file.
        benchmark: name of the benchmark.

    Raises:
        SettingsError: lighteval is missing or has no such prompt, or the file does not exist.
        InputError: the file does not contain texts.
    """
    if name == "rlt":
        return Prompts("rlt")
    return _of_lighteval(benchmark) if name == "lighteval" else _of_file(name)


def _of_lighteval(benchmark: str) -> Prompts:
    if benchmark not in _LIGHTEVAL:
        raise SettingsError(
            f"--prompts: lighteval has no prompt for --benchmark {benchmark}; takes {', '.join(_LIGHTEVAL)}"
        )
    spec = find_spec("lighteval")
    if spec is None or not spec.submodule_search_locations:
        raise SettingsError(
            f"--prompts: lighteval is not installed; pip install --no-deps lighteval=={_LIGHTEVAL_VERSION} (its "
            "dependencies are not needed)"
        )
    version = metadata.version("lighteval")
    module, function = _LIGHTEVAL[benchmark]
    file = Path(next(iter(spec.submodule_search_locations)), "tasks", "tasks", f"{module}.py")
    fields = ("problem", "question", "Question")
    choices = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
    record = dict.fromkeys(fields, _QUESTION) | dict.fromkeys(choices, _CHOICE) | {"solution": "", "answer": ""}
    try:
        query = _user_message(_prompt_function(file, function)(record))
    except Exception as error:  # noqa: BLE001 - another version of lighteval may fail in any way
        reason = f"{type(error).__name__}: {first_line(error)}"
    else:
        template = query.replace(f"{_QUESTION}\n\n{listed_choices([_CHOICE] * 4)}", _QUESTION)
        if template.count(_QUESTION) == 1 and _CHOICE not in template:
            return Prompts("lighteval", version, template)
        reason = "its text has another layout"
    raise SettingsError(
        f"--prompts: cannot read {function} of lighteval {version} ({reason}); pip install --no-deps "
        f"lighteval=={_LIGHTEVAL_VERSION}"
    )


def _user_message(doc: Any) -> str:
    """Return the message that lighteval makes of a ``Doc``: the instruction directly before the rest of the query."""
    query, instruction = str(doc.query), getattr(doc, "instruction", None)
    if instruction is None:
        return query
    return str(instruction) + (query[len(instruction) :].strip() if query.startswith(instruction) else query)


def _prompt_function(file: Path, name: str) -> Callable[[dict[str, str]], Any]:
    """Compile a prompt function and the templates of its module, without the module's imports."""
    body: list[ast.stmt] = [
        node
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if (isinstance(node, ast.FunctionDef) and node.name == name)
        or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).endswith("_TEMPLATE"))
    ]
    names: dict[str, Any] = {
        "Doc": SimpleNamespace,
        "ascii_uppercase": ascii_uppercase,
        "dedent": dedent,
        "random": random.Random(0),
    }
    exec(compile(ast.Module(body, []), str(file), "exec"), names)  # noqa: S102 - code of an installed package
    function: Callable[[dict[str, str]], Any] = names[name]
    return function


def _of_file(name: str) -> Prompts:
    try:
        text = Path(name).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not UTF-8 at byte {error.start + 1}") from None
    except (OSError, ValueError):  # ValueError: not a valid file name
        raise SettingsError(f"--prompts: {name!r} is neither rlt, lighteval nor a YAML file") from None
    texts = parse_yaml(text, name)
    if not texts or not texts.keys() <= set(_KEYS) or not all(isinstance(value, str) for value in texts.values()):
        raise InputError(f"{name}: must be a YAML mapping with texts under {' or '.join(_KEYS)}")
    if texts.get("question_template", _QUESTION).count(_QUESTION) != 1:
        raise InputError(f"{name}: question_template must contain {_QUESTION} once")
    return Prompts(Path(name).name, **texts)
