"""Is an answer right? Asked of a process of its own that can be killed, because graders hang and crash on odd answers.

Three kinds: ``math`` (math-verify: numbers, expressions, sets, intervals), ``choice`` (a letter), ``countdown``.
"""

from __future__ import annotations

import json
import queue
import re
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from typing import Any, Literal

from rlt_data.errors import ModelError
from rlt_data.tasks.countdown import problem_with_answer

Kind = Literal["math", "choice", "countdown"]

#: Seconds that one answer may take.
PATIENCE = 10.0
#: Seconds that the process may take to start, imports included.
_START_PATIENCE = 120.0
#: What follows these words, last in a text, is its answer.
_ANNOUNCED = re.compile(r"(?:answer(?: is|:)|####)[ :]*", re.I)
_LETTER = re.compile(r"(?<![A-Za-z])\(?([A-J])\)?(?![A-Za-z])")


@dataclass(frozen=True)
class Grade:
    """Whether an answer is right, and if it is not, why, as far as that is known."""

    correct: bool
    note: str | None = None


def final_answer(solution: str) -> str:
    """Return the part of a solution that states its answer: the last box, what is announced, or all of it."""
    start = solution.rfind("\\boxed{")
    if start >= 0:
        depth = 0
        for at in range(start + 6, len(solution)):
            depth += {"{": 1, "}": -1}.get(solution[at], 0)
            if not depth:
                return solution[start + 7 : at].strip()
    *_, stated = _ANNOUNCED.split(solution)
    return (stated.strip().splitlines() or [""])[0].strip().removesuffix(".") if stated != solution else stated.strip()


def grade(kind: Kind, solution: str, gold: str, numbers: list[int] | None = None, target: int | None = None) -> Grade:
    """Grade a solution here and now; for answers that are trusted not to hang.

    Args:
        kind: what is compared.
        solution: the solution's text.
        gold: the right answer.
        numbers: of a Countdown problem.
        target: of a Countdown problem.
    """
    if kind == "countdown":
        problem = problem_with_answer(final_answer(solution), tuple(numbers or ()), int(target or 0))
        return Grade(problem is None, problem)
    if kind == "choice":
        letters = _LETTER.findall(final_answer(solution))
        return Grade(bool(letters) and letters[-1] == gold.strip().strip("()").upper())
    from math_verify import parse, verify

    # Without time limits of its own, which need signals; the process as a whole has one.
    wanted = parse(f"${gold}$", parsing_timeout=None)
    for text in (f"${final_answer(solution)}$", solution):
        found = parse(text, parsing_timeout=None)
        if found and verify(wanted, found, timeout_seconds=None):
            return Grade(True)
    return Grade(False)


class Grader:
    """Grades in a process of its own, which is killed and started again when an answer takes too long.

    Use as a context manager.

    Args:
        patience: seconds that one answer may take.
    """

    def __init__(self, patience: float = PATIENCE) -> None:
        self._patience = patience
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")

    def __enter__(self) -> Grader:
        self._start()  # now, so that a missing package shows before hours of sampling
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        self._errors.close()

    def grade(self, kind: Kind, solution: str, gold: str, **problem: Any) -> Grade:
        """Grade a solution; an answer that the grader cannot stand is wrong, with a note.

        Raises:
            ModelError: the grader cannot be started.
        """
        process = self._process or self._start()
        assert process.stdin is not None
        question = {"kind": kind, "solution": solution, "gold": gold, **problem}
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            line = self._answers.get(timeout=self._patience)
        except queue.Empty:
            self._kill()
            return Grade(False, f"the grader did not finish within {self._patience:g} s")
        except OSError:
            line = ""
        if not line:
            self._kill()
            return Grade(False, "the grader died of this answer")
        return Grade(**json.loads(line))

    def _start(self) -> subprocess.Popen[str]:
        self._process = process = subprocess.Popen(
            [sys.executable, "-c", "from rlt_data.tasks.grading import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
        )
        answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._answers = answers

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                answers.put(line)
            answers.put("")

        threading.Thread(target=read, daemon=True).start()
        try:
            ready = answers.get(timeout=_START_PATIENCE)
        except queue.Empty:
            ready = ""
        if not ready:
            self._kill()
            self._errors.seek(0)
            reason = (self._errors.read().strip().splitlines() or ["no answer"])[-1]
            raise ModelError(f"the grader cannot be started: {reason}; pip install 'rlt-data[eval]'")
        return process

    def _kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None


def serve() -> None:
    """Answer questions on stdin, one JSON object a line, until it ends; what :class:`Grader` starts."""
    import math_verify  # noqa: F401 - to fail here, not at the first question

    answers = sys.stdout
    sys.stdout = sys.stderr  # what a library prints is no answer
    answers.write("{}\n")
    answers.flush()
    for line in sys.stdin:
        try:
            found = grade(**json.loads(line))
        except Exception as error:  # noqa: BLE001 - symbolic algebra raises everything
            found = Grade(False, f"the grader failed: {type(error).__name__}")
        answers.write(json.dumps({"correct": found.correct, "note": found.note}) + "\n")
        answers.flush()
