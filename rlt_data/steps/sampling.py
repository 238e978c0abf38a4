"""Sample a model for each question and write the samples to a table; shared by generate and evaluate.

    for each part of 256 questions: render and tokenise the prompts, and send them to the engine as one block
    for each finished sample: build its row, which the loop of resumable.py writes

A row's key is a hash of its question, its sample index and all settings that affect it, so a second call computes only
the missing rows.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow.compute as pc

from rlt_data.engines import Engine, Failure, Model, PromptRequest, Sample, SampleRequest, Sampling
from rlt_data.formats import Encoding, Tokenizer, encode, tokens_inside
from rlt_data.formats.spans import Ints, unmarked
from rlt_data.progress import Progress
from rlt_data.settings import SamplingSettings
from rlt_data.steps.dry_run import StepPlan, plan_step
from rlt_data.steps.provenance import StepSummary
from rlt_data.steps.resumable import FinishedRow, ResumableTable
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import content_hash

Question = dict[str, Any]


@dataclass(frozen=True)
class Start:
    """What a sample already has when it is requested.

    Attributes:
        text: text after the prompt of the question.
        tokens: tokens of this text.
        prompt_tokens: tokens of the prompt of the question, if there is text after it.
        max_tokens: maximum number of tokens to sample; None: that of the settings.
        ended: finish reason of a sample that needs no more tokens.
    """

    text: str = ""
    tokens: int = 0
    prompt_tokens: int = 0
    max_tokens: int | None = None
    ended: Literal["eos", "length"] | None = None


#: The start of a sample without text.
_FIRST = Start()


@dataclass(frozen=True)
class PendingSample:
    """A sample that has been requested from the engine.

    Attributes:
        part: part of the table that gets its row.
        question: row of the questions table.
        sample_index: 0 to n - 1.
        seed: seed of the sample.
        prefill_ids: last tokens of the prompt, whose log-probs are stored with the sample.
        start: what the sample already had.
    """

    part: int
    question: Question
    sample_index: int
    seed: int
    prefill_ids: Ints
    start: Start

    @property
    def source_id(self) -> str | None:
        """The question's id in the user's data."""
        return self.question["source_id"]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class SamplingTask:
    """Describes what to sample and how to store it.

    Attributes:
        step: name of the step.
        table: name of the table for the rows.
        n: samples per question.
        settings: sampling settings; each sample's seed is derived from their seed.
        stop: text that ends a sample.
        made_by: hash of everything that a sample depends on, except its question and its index.
        prompt: returns the prompt of a question.
        refusal: returns why a question cannot be sampled, or None.
        tail: number of characters at the end of each prompt whose tokens get log-probs.
        row: returns the row of a sample.
        starts: returns what the samples of a part already have, by question and index; the others are left out. None:
            all samples start at the prompt of their question.
        stage: number of earlier tasks that drew tokens of the same samples; each stage has other seeds.
    """

    step: str
    table: str
    n: int
    settings: SamplingSettings
    stop: str
    made_by: str
    prompt: Callable[[Question], str]
    refusal: Callable[[Question], str | None]
    tail: int
    row: Callable[[Sample, PendingSample], dict[str, Any]]
    starts: Callable[[int], Mapping[tuple[str, int], Start]] | None = None
    stage: int = 0


def sample_seed(seed: int, question_id: str, sample_index: int, stage: int = 0) -> int:
    """Return the sample's 64-bit seed, independent of batch and machine."""
    text = f"{seed}/{question_id}/{sample_index}" + (f"/{stage}" if stage else "")
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def sample_questions(run: RunFolder, model: Model, task: SamplingTask, progress: Progress) -> StepSummary:
    """Compute the missing samples of a table.

    Args:
        run: a run with questions that this process has locked.
        model: the model to sample.
        task: what to sample.
        progress: receives every new row.
    """
    table = _open_table(run, model, task, [model.engine])
    rows = _rows(model, task, table)
    own, _ = _own_samples(run, task)
    # Other makers' samples, and those of earlier calls with a larger n, would push progress over 100 %.
    surplus = run.count(task.table) - own
    total = run.count("questions") * task.n
    if task.starts:
        total = sum(len(task.starts(part)) for part in run.parts("questions"))
    return table.fill(rows, progress, total=total, surplus=surplus)


def plan_samples(
    inputs: RunFolder, run: RunFolder, model: Model, task: SamplingTask, *, comparable: bool = True
) -> StepPlan:
    """Return what :func:`sample_questions` would compute, without loading the model.

    Args:
        inputs: a run with the questions.
        run: the run with the samples.
        model: the model to sample.
        task: what to sample; its settings are those of the step.
        comparable: see :func:`rlt_data.steps.dry_run.plan_step`.
    """
    table = _open_table(run, model, task, [])
    own, mean_tokens = _own_samples(run, task)
    sampling, context = _sampling(task), model.context_length
    new = read = tokens = longest = sampled = 0
    for part in inputs.parts("questions"):
        questions = inputs.read("questions", part).to_pylist()
        for prompt in _prompts(part, questions, run.keys(task.table, part), model, task, table):
            if prompt.pending and not prompt.refusal:
                start = prompt.start
                new += len(prompt.pending)
                sampled += start.tokens * len(prompt.pending)
                if start.ended:
                    continue
                request = PromptRequest(prompt.encoding.ids, [], max_tokens=start.max_tokens)
                room = max(sampling.room(request, context), 0)
                read += len(prompt.encoding)
                tokens += room * len(prompt.pending)
                longest = max(longest, len(prompt.encoding) + room)
    rows = inputs.count("questions") * task.n
    return plan_step(
        run,
        task.step,
        task.settings,
        [model],
        comparable=comparable,
        questions=inputs.count("questions"),
        rows=rows,
        done=own,
        new=new,
        left_out=rows - own - new,
        tokens_read=read,
        tokens=tokens,
        tokens_expected=None if mean_tokens is None else max(mean_tokens * new - sampled, 0),
        longest=longest,
    )


def _open_table(
    run: RunFolder, model: Model, task: SamplingTask, engines: Sequence[Engine]
) -> ResumableTable[PendingSample]:
    return ResumableTable(
        run,
        task.step,
        task.table,
        engines,
        made_by=task.made_by,
        retry_errors=task.settings.retry_errors,
        follows_retries=task.starts is not None,
        stall_timeout=model.settings.stall_timeout,
    )


def _own_samples(run: RunFolder, task: SamplingTask) -> tuple[int, float | None]:
    """Return the number of the task's samples in the table, and their mean number of tokens; None without samples."""
    own = (pc.field("made_by") == task.made_by) & (pc.field("sample_index") < task.n)
    count = tokens = 0
    for part in run.parts(task.table):
        rows = run.read(task.table, part, ["sample_index", "made_by", "completion_tokens"]).filter(own)
        count += len(rows)
        tokens += pc.sum(rows["completion_tokens"]).as_py() or 0
    return count, tokens / count if count else None


def _rows(model: Model, task: SamplingTask, table: ResumableTable[PendingSample]) -> Iterator[FinishedRow | Failure]:
    """Yield the pending rows as they finish."""
    ended: deque[Sample] = deque()
    for result in model.generate(_blocks(model, task, table, ended), _sampling(task)):
        while ended:
            yield _finished(ended.popleft(), task, table)
        yield result if isinstance(result, Failure) else _finished(result, task, table)
    for sample in ended:
        yield _finished(sample, task, table)


def _finished(sample: Sample, task: SamplingTask, table: ResumableTable[PendingSample]) -> FinishedRow:
    return FinishedRow(sample.key, task.row(sample, table.pending[sample.key]), sample.completion_tokens)


def _sampling(task: SamplingTask) -> Sampling:
    settings = task.settings
    return Sampling(settings.temperature, settings.top_p, settings.top_k, settings.max_tokens, task.stop)


def _blocks(
    model: Model, task: SamplingTask, table: ResumableTable[PendingSample], ended: deque[Sample]
) -> Iterator[list[PromptRequest]]:
    """Yield the requests of each part that has pending rows; ``ended`` gets the samples that need no more tokens."""
    for part, stored in table.parts("questions"):
        questions = table.run.read("questions", part).to_pylist()
        block = _block(part, questions, stored, model, task, table, ended)
        if any(sample.emit for request in block for sample in request.samples):
            # Longest prompts first, so that a prompt that does not fit in memory fails early.
            yield sorted(block, key=lambda request: -len(request.ids))


def _block(
    part: int,
    questions: list[Question],
    stored: set[str],
    model: Model,
    task: SamplingTask,
    table: ResumableTable[PendingSample],
    ended: deque[Sample],
) -> list[PromptRequest]:
    """Return requests for all samples of a part, including finished ones, so that batches are equal after a resume."""
    errors, block = table.errors, []
    for prompt in _prompts(part, questions, stored, model, task, table):
        question, start, encoding = prompt.question, prompt.start, prompt.encoding
        id = question["question_id"]
        if prompt.refusal:
            if not errors.settled(id):
                errors.add(id, prompt.refusal, question["source_id"])
            continue
        errors.resolve(id)
        finish = start.ended
        if start.text and not finish and len(encoding) >= model.context_length:
            finish = "length"
        tail = tokens_inside(encoding, prompt.characters - task.tail, prompt.characters)
        samples = []
        for index, key in prompt.keys.items():
            seed = sample_seed(task.settings.seed, id, index, task.stage)
            samples.append(SampleRequest(key, seed, key in prompt.pending))
            if key in prompt.pending:
                table.add(key, PendingSample(part, question, index, seed, encoding.ids[tail], start))
                if finish:
                    ended.append(Sample(key, "", None, None, None, finish, len(encoding), 0))
        if not finish:
            block.append(PromptRequest(encoding.ids, samples, tail=len(tail), max_tokens=start.max_tokens))
    return block


@dataclass(frozen=True)
class _Prompt:
    """The prompt of the samples of a question that have the same start.

    Attributes:
        question: row of the questions table.
        start: what the samples already have.
        encoding: its tokens.
        characters: its length.
        refusal: why the question cannot be sampled, or None.
        keys: keys of the samples, by index.
        pending: keys of the samples to compute.
    """

    question: Question
    start: Start
    encoding: Encoding
    characters: int
    refusal: str | None
    keys: dict[int, str]
    pending: set[str]


def _prompts(
    part: int,
    questions: list[Question],
    stored: set[str],
    model: Model,
    task: SamplingTask,
    table: ResumableTable[PendingSample],
) -> Iterator[_Prompt]:
    """Yield the prompts of a part, if any of its samples is pending."""
    by_id = {question["question_id"]: question for question in questions}
    starts = (
        {(id, index): _FIRST for id in by_id for index in range(task.n)} if task.starts is None else task.starts(part)
    )
    samples: dict[tuple[str, Start], dict[int, str]] = defaultdict(dict)
    for (id, index), start in starts.items():
        samples[id, start][index] = content_hash(task.made_by, id, index)
    pending = {
        (id, start): {key for key in keys.values() if table.is_pending(key, stored, group=id)}
        for (id, start), keys in samples.items()
    }
    if not any(pending.values()):
        return
    prompts = [task.prompt(by_id[id]) + start.text for id, start in samples]
    for (id, start), prompt, encoding in zip(samples, prompts, encode(model.tokenizer, prompts), strict=True):
        question, text, refusal = by_id[id], unmarked(prompt), None
        if not start.text:
            refusal = task.refusal(question) or _refuse_prompt(model, text, encoding)
        yield _Prompt(question, start, encoding, len(text), refusal, samples[id, start], pending[id, start])


def _refuse_prompt(model: Model, prompt: str, encoding: Encoding) -> str | None:
    """Return why the model cannot continue a prompt, or None."""
    if len(encoding) >= model.context_length:
        return f"the prompt has {len(encoding)} tokens, the context is {model.context_length}"
    if (word := unknown_word(model.tokenizer, prompt, encoding)) is not None:
        return f"the model's vocabulary lacks words of this question, such as {word!r}; use another model"
    return None


def unknown_word(tokenizer: Tokenizer, prompt: str, encoding: Encoding) -> str | None:
    """Return the first word of a prompt that the tokenizer maps to its unknown token, or None."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown in (None, tokenizer.bos_token_id, tokenizer.eos_token_id):  # GPT-2 has one token for all three
        return None
    for token, (start, end) in zip(encoding.ids.tolist(), encoding.offsets.tolist(), strict=True):
        if token == unknown:
            return prompt[start:end]
    return None
