"""Grade answers in a separate process that can be killed, because graders hang and crash on odd answers.

Three kinds of answers: ``math`` (numbers, expressions, sets and intervals, compared by math-verify), ``choice`` (a
letter) and ``countdown`` (an expression). Only ``math`` needs the extra ``eval``.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from rlt_data.errors import ModelError
from rlt_data.tasks.answers import LETTER, gold_letter, latex
from rlt_data.tasks.countdown import why_wrong

Kind = Literal["math", "choice", "countdown"]

#: Time limit per answer, in seconds.
TIMEOUT = 10.0
#: Time limit for starting the process, imports included, in seconds.
_START_TIMEOUT = 120.0
#: Memory of the grader's process, in bytes, where the system can limit it.
MEMORY = 2 * 2**30
#: Longer texts, in characters, are not answers.
LONGEST_ANSWER = 1000
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?:\s*\{|\s+(?=[-\d]))")
_BRACE = re.compile(r"\\.|[{}]", re.S)
#: The text after the last match is the answer.
_ANNOUNCED = re.compile(
    r"(?:answer(?: is|:| =)|answer (?:would|should|must|will) be(?=[ :*]*[-\d$\\(])|^[#* ]*final answer[*: ]*$"
    r"|(?:correct|right) (?:option|choice)(?: is|:)|####"
    r"|antwort(?: ist| lautet|:)|réponse(?: est| ?:)|respuesta(?: es|:)|答案(?:是|为|:|：))"
    r"[ :：*]*",
    re.I | re.M,
)
_ANSWER_LINE = re.compile(r"^[#* ]*(?:final )?answer[* ]*:[ :*]*\S", re.I | re.M)
#: Markup of an answer, and a final exclamation mark that is no factorial of a variable.
_MARKUP = re.compile(r"</?(?:b|i|em|strong|code)>|(?:(?<=[\d*`>])|(?<=\w\w))!+$")
_SENTENCE_END = re.compile(r"\.\s+(?=[A-Z])|(?<=[\d)}\]$%])\.\s")
_WORD = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{3,}")


@dataclass(frozen=True)
class Grade:
    """Grade of an answer.

    Attributes:
        correct: whether the answer is correct.
        note: why the answer is wrong, if known.
    """

    correct: bool
    note: str | None = None

    @property
    def failed(self) -> bool:
        """Whether the grader failed, so that the answer may be right."""
        return (self.note or "").startswith("the grader")


def final_answer(solution: str) -> str:
    """Return the final answer that a solution states; all of the solution if it states none."""
    return stated_answer(solution) or solution.strip()


def stated_answer(text: str) -> str | None:
    """Return the final answer that a text states: the last LaTeX box, else the text after "answer is"; None if none.

    A line after the last box that starts with "answer:" counts instead, because some prompts ask for such a line.
    Answers longer than 1000 characters do not count, nor does a heading that starts with ``####``.
    """
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return next(filter(None, _announced(text)), None)
    if line := _ANSWER_LINE.search(text, boxes[-1].end()):
        return next(filter(None, _announced(text[line.start() :])), None)
    return _content(text, boxes[-1]) or next(filter(None, _announced(text)), None)


def _content(text: str, box: re.Match[str]) -> str | None:
    """Return the content of a box, if it is closed."""
    start = box.end()
    if not box[0].endswith("{"):
        return text[start : start + LONGEST_ANSWER].split(maxsplit=1)[0].strip("$.,")
    depth = 1
    for brace in _BRACE.finditer(text, start, start + LONGEST_ANSWER):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if not depth:
            return text[start : brace.start()].strip()
    return None


def _announced(text: str) -> Iterator[str]:
    """Yield the text after each announcement, the last first, up to the end of its line or sentence."""
    for match in reversed(list(_ANNOUNCED.finditer(text))):
        lines = text[match.end() : match.end() + LONGEST_ANSWER].strip().splitlines()
        is_heading = match[0].strip(" *") == "####" and len(lines) > 1
        if lines and not is_heading:
            yield _MARKUP.sub("", _SENTENCE_END.split(lines[0], maxsplit=1)[0]).strip(" *`~").removesuffix(".")


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
        letters = LETTER.findall(final_answer(solution))
        return Grade(bool(letters) and letters[-1] == gold_letter(gold))
    from math_verify import verify

    solution = latex(solution)
    expected, answer = _parsed(f"${latex(gold)}$"), final_answer(solution)
    found = _parsed(f"${answer}$")
    # An answer with words is parsed as text too. A formula is not, because its last number would be taken.
    is_formula = found and answer == solution.strip() and not _WORD.search(answer)
    attempts = [found] if is_formula else [found, _parsed(solution)]
    # math-verify's own time limits need signals; Grader limits the time of the process instead.
    return Grade(any(attempt and verify(expected, attempt, timeout_seconds=None) for attempt in attempts))


@lru_cache(1024)
def _parsed(text: str) -> list[Any]:
    """Return the mathematical answers in a text."""
    from math_verify import parse

    parsed: list[Any] = parse(text, parsing_timeout=None)
    return parsed


class Grader:
    """Grades answers in a separate process, which is restarted if it crashes or an answer takes too long.

    Use as a context manager. An answer that needs more than :data:`MEMORY` ends the process.

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


class Graders:
    """Several graders, each with its own process, which starts at its first answer.

    Use as a context manager.

    Args:
        processes: number of graders.
        timeout: time limit per answer, in seconds.
    """

    def __init__(self, processes: int, timeout: float) -> None:
        self._graders = [Grader(timeout=timeout) for _ in range(processes)]

    def __enter__(self) -> Graders:
        return self

    def __exit__(self, *_: object) -> None:
        for grader in self._graders:
            grader.__exit__()

    def grade(self, pairs: Sequence[tuple[str, str]]) -> list[Grade]:
        """Grade pairs of an answer and the correct answer, both mathematical.

        Raises:
            ModelError: a grader cannot be started.
        """
        free: queue.SimpleQueue[Grader] = queue.SimpleQueue()
        for grader in self._graders:
            free.put(grader)

        def graded(pair: tuple[str, str]) -> Grade:
            grader = free.get()
            try:
                return grader.grade("math", *pair)
            finally:
                free.put(grader)

        with ThreadPoolExecutor(len(self._graders)) as threads:
            return list(threads.map(graded, pairs))


def serve(kind: Kind) -> None:
    """Grade requests from stdin, one JSON object per line, until stdin is closed; runs in :class:`Grader`'s process."""
    if kind == "math":
        grade("math", "72 dollars", "\\frac{1}{2}")  # import now, so that the time limit covers only the answer
    with contextlib.suppress(ImportError, OSError, ValueError):  # Windows, and systems that refuse the limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    replies = sys.stdout
    sys.stdout = sys.stderr  # keep text that libraries print out of the replies
    replies.write("{}\n")
    replies.flush()
    for line in sys.stdin:
        try:
            reply = grade(**json.loads(line))
        except MemoryError:
            os._exit(1)  # libraries may be in any state
        except Exception as error:  # noqa: BLE001 - symbolic algebra raises exceptions of many kinds
            reply = Grade(False, f"the grader failed: {type(error).__name__}")
        replies.write(json.dumps({"correct": reply.correct, "note": reply.note}) + "\n")
        replies.flush()
