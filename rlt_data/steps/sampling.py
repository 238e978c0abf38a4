"""Sampling a model question by question into a table of a run: the work that generate and evaluate share.

    for each part of 256 questions: render, tokenise, sort by length, hand to the engine as one block
    for each sample as it finishes: append to the table; when a part has all its rows, merge its journal

A row's key is a hash of its question, its number and all settings that shape it, so running again makes only what is
missing.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rlt_data.engines import Failure, Model, PromptRequest, Sample, SampleRequest, Sampling
from rlt_data.engines.watchdog import check_nothing_owed, describe_owed, watched
from rlt_data.formats import Encoding, Tokenizer, encode, tokens_inside
from rlt_data.formats.spans import Ints
from rlt_data.progress import Progress
from rlt_data.settings import SamplingSettings
from rlt_data.steps.provenance import StepSummary
from rlt_data.storage.errorlog import ErrorLog
from rlt_data.storage.run import Run, TableWriter, content_hash

Question = dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """A sample that the engine is working on.

    Attributes:
        part: where its row goes.
        question: the row of the questions table.
        sample_index: 0 to n - 1.
        seed: of this sample.
        prefill_ids: tokens of the prompt's tail.
    """

    part: int
    question: Question
    sample_index: int
    seed: int
    prefill_ids: Ints


@dataclass(frozen=True)
class SamplingTask:
    """What is sampled, and what becomes of it.

    Attributes:
        step: the step's name.
        table: the table that grows.
        n: samples of each question.
        settings: how tokens are drawn; every sample's own seed follows from its seed.
        stop: text that ends a sample.
        made_by: hash of everything that a sample depends on beside its question and its number.
        prompt: the text to go on from.
        problem: why a question cannot be shown, or None.
        tail: characters at the end of every prompt whose tokens' log-probs are wanted.
        row: makes a row of the table.
    """

    step: str
    table: str
    n: int
    settings: SamplingSettings
    stop: str
    made_by: str
    prompt: Callable[[Question], str]
    problem: Callable[[Question], str | None]
    tail: int
    row: Callable[[Sample, Wanted], dict[str, Any]]


def sample_seed(seed: int, question_id: str, sample_index: int) -> int:
    """Return a sample's own seed, 64 bits, the same wherever and beside whatever it is drawn."""
    digest = hashlib.blake2b(f"{seed}/{question_id}/{sample_index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def sample_questions(run: Run, model: Model, task: SamplingTask, progress: Progress) -> StepSummary:
    """Make the samples that are missing.

    Args:
        run: a run with questions, whose lock is held.
        model: what is sampled.
        task: see there.
        progress: told of every row.
    """
    errors = ErrorLog(run, task.step, retry=task.settings.retry_errors)
    return _Work(run, model, task, errors).run_to_end(progress)


@dataclass
class _Work:
    run: Run
    model: Model
    task: SamplingTask
    errors: ErrorLog
    wanted: dict[str, Wanted] = field(default_factory=dict)
    owed: dict[int, int] = field(default_factory=dict)  # rows still to come, by part

    def run_to_end(self, progress: Progress) -> StepSummary:
        task, errors = self.task, self.errors
        total, before = self.run.count("questions") * task.n, self.run.count(task.table)
        new = tokens = 0
        engine, how = self.model.engine, task.settings
        sampling = Sampling(how.temperature, how.top_p, how.top_k, how.max_tokens, task.stop)
        patience = self.model.settings.stall_timeout
        began = time.monotonic()
        progress.start(task.step, total, before)
        try:
            with TableWriter(self.run, task.table) as writer, watched([engine.pulse], patience, self._report):
                for result in self.model.generate(self._blocks(), sampling):
                    wanted = self.wanted.pop(result.key)
                    if isinstance(result, Failure):
                        errors.add(result.key, result.reason, wanted.question["source_id"])
                    else:
                        writer.append(wanted.part, task.row(result, wanted))
                        errors.resolve(result.key)
                        new, tokens = new + 1, tokens + result.completion_tokens
                        progress.advance(1, result.completion_tokens)
                    self.owed[wanted.part] -= 1
                    if not self.owed[wanted.part]:
                        writer.compact(wanted.part)
                check_nothing_owed(self.wanted, engine.log_tail())
        finally:
            errors.close()
            progress.finish()
        self.run.compact_all(task.table)
        return StepSummary(self.run.path, before + new, new, len(errors), tokens, time.monotonic() - began)

    def _report(self) -> str:
        return describe_owed(self.wanted, self.model.engine.log_tail())

    def _blocks(self) -> Iterator[list[PromptRequest]]:
        for part in self.run.parts("questions"):
            self.model.engine.pulse.beat()  # passing over what is done is no standing still
            questions = self.run.read("questions", part).to_pylist()
            block = list(self._requests(part, questions, self.run.keys(self.task.table, part)))
            self.owed[part] = sum(sample.owed for request in block for sample in request.samples)
            if self.owed[part]:
                # Longest first, so that what does not fit in memory shows at once.
                yield sorted(block, key=lambda request: -len(request.ids))

    def _requests(self, part: int, questions: list[Question], made: set[str]) -> Iterator[PromptRequest]:
        task, errors = self.task, self.errors
        ids = [question["question_id"] for question in questions]
        keys = {key: [content_hash(task.made_by, key, index) for index in range(task.n)] for key in ids}
        if not any(self._is_owed(key, made, question) for question, all in keys.items() for key in all):
            return
        prompts = [task.prompt(question) for question in questions]
        for question, prompt, encoding in zip(questions, prompts, encode(self.model.tokenizer, prompts), strict=True):
            key = question["question_id"]
            problem = task.problem(question)
            if problem is None and (word := _unknown_word(self.model.tokenizer, prompt, encoding)) is not None:
                problem = f"the model's vocabulary lacks words of this question, such as {word!r}"
            if len(encoding) >= self.model.engine.context_length:
                problem = f"the prompt has {len(encoding)} tokens, the context is {self.model.engine.context_length}"
            if problem:
                if not errors.settled(key):
                    errors.add(key, problem, question["source_id"])
                continue
            errors.resolve(key)
            tail = tokens_inside(encoding, len(prompt) - task.tail, len(prompt))
            samples = []
            for index, sample_key in enumerate(keys[key]):
                owed = self._is_owed(sample_key, made, key)
                seed = sample_seed(task.settings.seed, key, index)
                samples.append(SampleRequest(sample_key, seed, owed))
                if owed:
                    self.wanted[sample_key] = Wanted(part, question, index, seed, encoding.ids[tail])
            yield PromptRequest(encoding.ids, samples, tail=len(tail))

    def _is_owed(self, key: str, made: set[str], question_id: str) -> bool:
        errors = self.errors
        if self.task.settings.retry_errors:
            return key not in made and (errors.retries(key) or errors.retries(question_id))
        return key not in made and not errors.settled(key) and not errors.settled(question_id)


def _unknown_word(tokenizer: Tokenizer, prompt: str, encoding: Encoding) -> str | None:
    """Return the first word of a prompt for which the model has no token, or None."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None or unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id):  # GPT-2 has one token for all
        return None
    for token, (start, end) in zip(encoding.ids.tolist(), encoding.offsets.tolist(), strict=True):
        if token == unknown:
            return prompt[start:end]
    return None
