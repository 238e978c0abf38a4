"""Grade answers in a separate process that can be killed, because graders hang and crash on odd answers.

Three kinds of answers: ``math`` (numbers, expressions, sets and intervals, compared by math-verify), ``choice`` (a
letter) and ``countdown`` (an expression). Only ``math`` needs the extra ``eval``.
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
from rlt_data.tasks.countdown import why_wrong

Kind = Literal["math", "choice", "countdown"]

#: Time limit per answer, in seconds.
TIMEOUT = 10.0
#: Time limit for starting the process, imports included, in seconds.
_START_TIMEOUT = 120.0
#: The text after the last match is the answer.
_ANNOUNCED = re.compile(r"(?:answer(?: is|:)|####)[ :]*", re.I)
_LETTER = re.compile(r"(?<![A-Za-z])\(?([A-J])\)?(?![A-Za-z])")


@dataclass(frozen=True)
class Grade:
    """Grade of an answer.

    Attributes:
        correct: whether the answer is correct.
        note: why the answer is wrong, if known.
    """

    correct: bool
    note: str | None = None


def final_answer(solution: str) -> str:
    """Return the final answer of a solution: the last LaTeX box, else the text after "answer is", else all of it."""
    start = solution.rfind("\\boxed{")
    if start >= 0:
        depth = 0
        for position in range(start + 6, len(solution)):
            depth += {"{": 1, "}": -1}.get(solution[position], 0)
            if not depth:
                return solution[start + 7 : position].strip()
    *_, answer = _ANNOUNCED.split(solution)
    return (answer.strip().splitlines() or [""])[0].strip().removesuffix(".") if answer != solution else answer.strip()


def grade(kind: Kind, solution: str, gold: str, numbers: list[int] | None = None, target: int | None = None) -> Grade:
    """Grade a solution in this process, without a time limit.

    Args:
        kind: kind of answer.
        solution: text of the solution.
        gold: the correct answer.
        numbers: numbers of a Countdown problem.
        target: target of a Countdown problem.
    """
    if kind == "countdown":
        reason = why_wrong(final_answer(solution), tuple(numbers or ()), int(target or 0))
        return Grade(reason is None, reason)
    if kind == "choice":
        letters = _LETTER.findall(final_answer(solution))
        return Grade(bool(letters) and letters[-1] == gold.strip().strip("()").upper())
    from math_verify import parse, verify

    # math-verify's own time limits need signals; Grader limits the time of the process instead.
    expected = parse(f"${gold}$", parsing_timeout=None)
    for text in (f"${final_answer(solution)}$", solution):
        answer = parse(text, parsing_timeout=None)
        if answer and verify(expected, answer, timeout_seconds=None):
            return Grade(True)
    return Grade(False)


class Grader:
    """Grades answers in a separate process, which is restarted if it crashes or an answer takes too long.

    Use as a context manager.

    Args:
        kind: kind of the answers; the process imports math-verify at the start only for ``math``.
        timeout: time limit per answer, in seconds.
    """

    def __init__(self, kind: Kind = "math", timeout: float = TIMEOUT) -> None:
        self._kind = kind
        self._timeout = timeout
        self._process: subprocess.Popen[str] | None = None
        self._replies: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")

    def __enter__(self) -> Grader:
        self._start()  # start early, so that a missing package is reported before hours of sampling
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        self._errors.close()

    def grade(self, kind: Kind, solution: str, gold: str, **problem: Any) -> Grade:
        """Grade a solution; an answer on which the grader crashes or times out is wrong, with a note.

        Args:
            kind: kind of answer.
            solution: text of the solution.
            gold: the correct answer.
            problem: ``numbers`` and ``target`` of a Countdown problem.

        Raises:
            ModelError: the grader cannot be started.
        """
        process = self._process or self._start()
        assert process.stdin is not None
        request = {"kind": kind, "solution": solution, "gold": gold, **problem}
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = self._replies.get(timeout=self._timeout)
        except queue.Empty:
            self._kill()
            return Grade(False, f"the grader did not finish within {self._timeout:g} s")
        except OSError:
            line = ""
        if not line:
            self._kill()
            return Grade(False, "the grader died of this answer")
        return Grade(**json.loads(line))

    def _start(self) -> subprocess.Popen[str]:
        self._process = process = subprocess.Popen(
            [sys.executable, "-c", f"from rlt_data.tasks.grading import serve; serve({self._kind!r})"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
        )
        replies: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._replies = replies

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                replies.put(line)
            replies.put("")

        threading.Thread(target=read, daemon=True).start()
        try:
            ready = replies.get(timeout=_START_TIMEOUT)
        except queue.Empty:
            ready = ""
        if not ready:
            self._kill()
            self._errors.seek(0)
            reason = (self._errors.read().strip().splitlines() or ["no reply"])[-1]
            remedy = "; pip install 'rlt-data[eval]'" if self._kind == "math" else ""
            raise ModelError(f"the grader cannot be started: {reason}{remedy}")
        return process

    def _kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None


def serve(kind: Kind) -> None:
    """Grade requests from stdin, one JSON object per line, until stdin is closed; runs in :class:`Grader`'s process."""
    if kind == "math":
        import math_verify  # noqa: F401 - fail here if it is missing, not at the first request

    replies = sys.stdout
    sys.stdout = sys.stderr  # keep text that libraries print out of the replies
    replies.write("{}\n")
    replies.flush()
    for line in sys.stdin:
        try:
            reply = grade(**json.loads(line))
        except Exception as error:  # noqa: BLE001 - symbolic algebra raises exceptions of many kinds
            reply = Grade(False, f"the grader failed: {type(error).__name__}")
        replies.write(json.dumps({"correct": reply.correct, "note": reply.note}) + "\n")
        replies.flush()
