"""Sample explanations from a teacher: questions in, traces out.

    for each part of 256 questions: render, tokenise, sort by length, hand to the engine as one block
    for each sample as it finishes: append to the traces; when a part has all its rows, merge its journal

A trace's key is a hash of its question, its number and all settings that shape it, so running again makes only what
is missing.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rlt_data.engines import Failure, Model, PromptRequest, Sample, SampleRequest, Sampling, open_model
from rlt_data.errorlog import ErrorLog
from rlt_data.formats import Format, Views, encode, tokens_inside
from rlt_data.formats.spans import Ints
from rlt_data.inputs import ingest
from rlt_data.progress import SILENT, Progress
from rlt_data.provenance import StepSummary, choose_format, default_run, run_log, step_entry
from rlt_data.settings import GenerateSettings
from rlt_data.store import Run, TableWriter, content_hash

logger = logging.getLogger(__name__)


def generate(settings: GenerateSettings, progress: Progress = SILENT) -> StepSummary:
    """Sample ``n`` traces of every question; the library side of ``rlt-data generate``.

    Continues where an earlier call with the same settings ended. Rows that cannot be made go to errors.jsonl.

    Raises:
        RltDataError: of one of the kinds in :mod:`rlt_data.errors`; nothing that was there is lost.
    """
    model = open_model(settings.teacher, settings)
    format = choose_format(settings.format, model)
    run = Run(settings.out or default_run(settings.input, settings.teacher))
    depends_on = _dependencies(settings, model, format)
    with run.locked():
        run.refuse_other_settings("generate", depends_on)
        ingest(run, settings, format, traces=False)
        model.load()
        run.record("generate", {"depends_on": depends_on, **step_entry(settings, format, {"teacher": model})})
        with run_log(run):
            work = _Work(run, settings, model, Views(format, model.template), content_hash(depends_on))
            summary = work.run_to_end(progress)
            logger.info("generate: %d new traces, %d in all, %d failed", summary.new, summary.rows, summary.failed)
        run.record("generate", {"rows": summary.rows, "failed": summary.failed})
    return summary


def _dependencies(settings: GenerateSettings, model: Model, format: Format) -> dict[str, Any]:
    """Return everything that a trace depends on beside its question and its number."""
    return {
        "teacher": model.identity.fingerprint,
        "dtype": model.identity.dtype,
        "chat_template": model.identity.chat_template,
        "format": format.hash,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "max_tokens": settings.max_tokens,
        "seed": settings.seed,
    }


def sample_seed(seed: int, question_id: str, sample_index: int) -> int:
    """Return a sample's own seed, 64 bits, the same wherever and beside whatever it is drawn."""
    digest = hashlib.blake2b(f"{seed}/{question_id}/{sample_index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


@dataclass(frozen=True)
class _Wanted:
    """A trace that the engine is working on."""

    part: int
    question: dict[str, Any]
    sample_index: int
    seed: int
    prefill_ids: Ints


@dataclass
class _Work:
    run: Run
    settings: GenerateSettings
    model: Model
    views: Views
    made_by: str
    wanted: dict[str, _Wanted] = field(default_factory=dict)
    owed: dict[int, int] = field(default_factory=dict)  # traces still to come, by part

    def run_to_end(self, progress: Progress) -> StepSummary:
        settings = self.settings
        errors = ErrorLog(self.run, "generate", retry=settings.retry_errors)
        total, before = self.run.count("questions") * settings.n, self.run.count("traces")
        sampling = Sampling(
            settings.temperature,
            settings.top_p,
            settings.top_k,
            settings.max_tokens,
            self.views.format.explanation_tags[1],
        )
        new = tokens = 0
        engine = self.model.engine
        began = time.monotonic()
        progress.start("generate", total, before)
        try:
            with TableWriter(self.run, "traces") as writer:
                for result in engine.generate(self._blocks(errors), sampling):
                    wanted = self.wanted.pop(result.key)
                    if isinstance(result, Failure):
                        errors.add(result.key, result.reason, wanted.question["source_id"])
                    else:
                        writer.append(wanted.part, self._row(result, wanted))
                        errors.resolve(result.key)
                        new, tokens = new + 1, tokens + len(result.token_ids)
                        progress.advance(1, len(result.token_ids))
                    self.owed[wanted.part] -= 1
                    if not self.owed[wanted.part]:
                        writer.compact(wanted.part)
        finally:
            errors.close()
            progress.finish()
        self.run.compact_all("traces")
        return StepSummary(self.run.path, before + new, new, len(errors), tokens, time.monotonic() - began)

    def _blocks(self, errors: ErrorLog) -> Iterator[list[PromptRequest]]:
        for part in self.run.parts("questions"):
            questions = self.run.read("questions", part).to_pylist()
            made = self.run.keys("traces", part)
            block = list(self._requests(part, questions, made, errors))
            self.owed[part] = sum(sample.owed for request in block for sample in request.samples)
            if self.owed[part]:
                # Longest first, so that what does not fit in memory shows at once.
                yield sorted(block, key=lambda request: -len(request.ids))

    def _requests(
        self, part: int, questions: list[dict[str, Any]], made: set[str], errors: ErrorLog
    ) -> Iterator[PromptRequest]:
        settings, views = self.settings, self.views
        keys = {
            question["question_id"]: [self._trace_id(question["question_id"], i) for i in range(settings.n)]
            for question in questions
        }
        if not any(self._is_owed(key, made, errors, question) for question, all in keys.items() for key in all):
            return
        prompts = [views.teacher_prompt(question["question"], question["solution"]) for question in questions]
        padding = len(views.format.padding)
        for question, prompt, encoding in zip(questions, prompts, encode(self.model.tokenizer, prompts), strict=True):
            key = question["question_id"]
            problem = views.format.problem_with(question["question"], question["solution"])
            if len(encoding) >= self.model.engine.context_length:
                problem = f"the prompt has {len(encoding)} tokens, the context is {self.model.engine.context_length}"
            if problem:
                if not errors.settled(key):
                    errors.add(key, problem, question["source_id"])
                continue
            errors.resolve(key)
            tail = tokens_inside(encoding, len(prompt) - padding, len(prompt))
            samples = []
            for index, trace_id in enumerate(keys[key]):
                owed = self._is_owed(trace_id, made, errors, key)
                seed = sample_seed(settings.seed, key, index)
                samples.append(SampleRequest(trace_id, seed, owed))
                if owed:
                    self.wanted[trace_id] = _Wanted(part, question, index, seed, encoding.ids[tail])
            yield PromptRequest(encoding.ids, samples, tail=len(tail))

    def _is_owed(self, trace_id: str, made: set[str], errors: ErrorLog, question_id: str) -> bool:
        if self.settings.retry_errors:
            return trace_id not in made and (errors.retries(trace_id) or errors.retries(question_id))
        return trace_id not in made and not errors.settled(trace_id) and not errors.settled(question_id)

    def _trace_id(self, question_id: str, sample_index: int) -> str:
        return content_hash(self.made_by, question_id, sample_index)

    def _row(self, sample: Sample, wanted: _Wanted) -> dict[str, Any]:
        question = wanted.question
        return {
            "trace_id": sample.key,
            "question_id": question["question_id"],
            "source_id": question["source_id"],
            "sample_index": wanted.sample_index,
            "completion": sample.text,
            "finish_reason": sample.finish_reason,
            "token_ids": sample.token_ids,
            "logprobs": sample.logprobs,
            "prefill_token_ids": wanted.prefill_ids,
            "prefill_logprobs": sample.tail_logprobs,
            "logprob_temperature": self.settings.temperature or 1.0,
            "prompt_tokens": sample.prompt_tokens,
            "completion_tokens": len(sample.token_ids),
            "seed": wanted.seed,
            "teacher": self.model.identity.fingerprint,
            "made_by": self.made_by,
        }
