"""Budget forcing (s1, arXiv 2501.19393): extend thoughts that end early, and close thoughts that are too long.

    stage 0                 sample each thought up to its closing tag, or up to --max-thought tokens
    stages 1 to --waits     remove the closing tag of thoughts that ended, append --wait-text and continue
    last stage              append the closing tag to thoughts that reached --max-thought, and sample the answers

Every stage fills a table through the loop of :mod:`rlt_data.steps.sampling`, so each resumes at a row: all but the last
fill ``thoughts``, the last fills ``answers``. A stage continues texts, as s1 does, so it works with every engine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from rlt_data.engines import Model, Sample
from rlt_data.errors import SettingsError
from rlt_data.formats import Views, encode
from rlt_data.progress import Progress
from rlt_data.settings import EvaluateSettings
from rlt_data.steps.provenance import StepSummary
from rlt_data.steps.sampling import PendingSample, SamplingTask, Start, sample_questions, unknown_word
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import content_hash


@dataclass(frozen=True)
class Thought:
    """The thought of a sample after some stages.

    Attributes:
        start: its text, and how many tokens may follow.
        extensions: how often it was extended.
        open: whether the next stage continues it; otherwise the answer follows, or the sample has ended.
        cut: whether it was closed because it reached the maximum.
    """

    start: Start = Start()
    extensions: int = 0
    open: bool = True
    cut: bool = False


class BudgetForcing:
    """The stages of an evaluation with budget forcing.

    Args:
        settings: the settings of the evaluation.
        model: the model.
        views: its prompts.
        made_by: hash of everything that an answer depends on, except its question and its sample index.
    """

    def __init__(self, settings: EvaluateSettings, model: Model, views: Views, made_by: str) -> None:
        self._settings = settings
        self._model = model
        self._views = views
        self._made_by = made_by
        wait, closing = encode(model.tokenizer, [settings.wait_text, views.thought_closing])
        self._wait_tokens, self._closing_tokens = len(wait), len(closing)
        if settings.waits and (word := unknown_word(model.tokenizer, settings.wait_text, wait)) is not None:
            raise SettingsError(f"--wait-text: the model's vocabulary lacks {word!r}; use another text")

    @property
    def stages(self) -> int:
        """Number of stages that sample thoughts."""
        return self._settings.waits + 1

    def sample(self, run: RunFolder, answers: SamplingTask, progress: Progress) -> StepSummary:
        """Sample the missing thoughts and answers.

        Args:
            run: a run with questions that this process has locked.
            answers: what to sample without budget forcing.
            progress: receives every new row.
        """
        for stage in range(self.stages):
            sample_questions(run, self._model, self._task(run, answers, stage), progress)
        closed = replace(
            answers,
            starts=lambda part: {key: thought.start for key, thought in self.thoughts(run, part) if not thought.open},
            stage=self.stages,
        )
        return sample_questions(run, self._model, closed, progress)

    def thoughts(
        self, run: RunFolder, part: int, stages: int | None = None
    ) -> Iterator[tuple[tuple[str, int], Thought]]:
        """Yield question, index and thought of the samples of a part.

        Args:
            run: the run.
            part: the part.
            stages: the number of stages whose texts count; None: all.
        """
        makers = {self._maker(stage): stage for stage in range(self.stages if stages is None else stages)}
        rows: dict[tuple[str, int], dict[int, dict[str, Any]]] = defaultdict(dict)
        table: list[dict[str, Any]] = run.read("thoughts", part).to_pylist() if part in run.parts("thoughts") else []
        for row in table:
            if row["made_by"] in makers and row["sample_index"] < self._settings.n:
                rows[row["question_id"], row["sample_index"]][makers[row["made_by"]]] = row
        for key in sorted(rows):
            thought = Thought()
            for stage in sorted(rows[key]):
                thought = self._after(thought, rows[key][stage])
            yield key, thought

    def starts(self, inputs: RunFolder, run: RunFolder, part: int) -> dict[tuple[str, int], Start]:
        """Return what the samples of a part already have, and how many tokens may follow in all stages.

        Args:
            inputs: a run with the questions.
            run: the run with the thoughts.
            part: the part.
        """
        thoughts, most = dict(self.thoughts(run, part)), self._settings.max_tokens
        ids = inputs.read("questions", part, ["question_id"])["question_id"].to_pylist()
        starts = {(id, index): Start() for id in ids for index in range(self._settings.n)}
        starts |= {key: thought.start for key, thought in thoughts.items()}
        return {key: replace(start, max_tokens=most and most - start.tokens) for key, start in starts.items()}

    def shares(self, run: RunFolder) -> tuple[float, float]:
        """Return the shares of the finished thoughts that were extended, and that were closed at the maximum."""
        finished = extended = cut = 0
        for part in run.parts("thoughts"):
            for _, thought in self.thoughts(run, part):
                if not thought.open:
                    finished, extended, cut = finished + 1, extended + bool(thought.extensions), cut + thought.cut
        return extended / max(finished, 1), cut / max(finished, 1)

    def _maker(self, stage: int) -> str:
        return content_hash(self._made_by, "thought", stage)

    def _task(self, run: RunFolder, answers: SamplingTask, stage: int) -> SamplingTask:
        maker = self._maker(stage)

        def row(sample: Sample, pending: PendingSample) -> dict[str, Any]:
            return {
                "thought_id": sample.key,
                "question_id": pending.question["question_id"],
                "source_id": pending.question["source_id"],
                "sample_index": pending.sample_index,
                "extension": stage,
                "completion": sample.text,
                "finish_reason": sample.finish_reason,
                "prompt_tokens": sample.prompt_tokens,
                "completion_tokens": sample.completion_tokens,
                "seed": pending.seed,
                "made_by": maker,
            }

        def starts(part: int) -> dict[tuple[str, int], Start]:
            if stage:
                return {key: thought.start for key, thought in self.thoughts(run, part, stage) if thought.open}
            first = Start(max_tokens=self._settings.max_thought)
            ids = run.read("questions", part, ["question_id"])["question_id"].to_pylist()
            return {(id, index): first for id in ids for index in range(self._settings.n)}

        return replace(
            answers,
            table="thoughts",
            stop=self._views.thought_end,
            made_by=maker,
            row=row,
            starts=starts,
            stage=stage,
        )

    def _after(self, thought: Thought, row: Mapping[str, Any]) -> Thought:
        """Return a thought after one more row of the table."""
        settings, reason = self._settings, row["finish_reason"]
        text, tokens = thought.start.text + row["completion"], thought.start.tokens + row["completion_tokens"]
        prompt_tokens = thought.start.prompt_tokens or row["prompt_tokens"]

        def start(added: str = "", added_tokens: int = 0, limit: int | None = None) -> Start:
            total = tokens + added_tokens
            left = min((most - total for most in (limit, settings.max_tokens) if most), default=None)
            ended: Literal["length"] | None = "length" if left is not None and left <= 0 else None
            return Start(text + added, total, prompt_tokens, left, ended)

        if reason == "length" and settings.max_thought:
            closed = start(self._views.thought_closing, self._closing_tokens)
            return Thought(closed, thought.extensions, open=False, cut=True)
        if reason != "length" and self._is_short(thought, tokens):
            if reason == "stop":
                text = text.rpartition(self._views.thought_end)[0]
            extended = start(settings.wait_text, self._wait_tokens, settings.max_thought)
            return Thought(extended, thought.extensions + 1, open=extended.ended is None)
        finished = start() if reason == "stop" else replace(start(), ended=reason)
        return Thought(finished, thought.extensions, open=False)

    def _is_short(self, thought: Thought, tokens: int) -> bool:
        """Return whether a thought that ended with this many tokens is extended."""
        settings = self._settings
        fits = not settings.max_thought or tokens + self._wait_tokens < settings.max_thought
        return thought.extensions < settings.waits and fits and tokens < (settings.min_thought or tokens + 1)
