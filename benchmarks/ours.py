"""The sides of rlt-data: its engine, its ``generate`` step, and the same engine on an unmodified model.

Each runs in a process of benchmarks/worker.py, with the ``rlt_data`` of this or another checkout. For texts and
log-probs see benchmarks/peers.py.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import polars as pl

from benchmarks.peers import TEMPERATURE, Texts, unmodified
from rlt_data.engines import Failure, Model, PromptRequest, Sample, SampleRequest, Sampling, SequenceRequest, open_model
from rlt_data.engines.protocol import SequenceLogprobs
from rlt_data.engines.transformers import TransformersEngine
from rlt_data.engines.transformers.model import CausalModel
from rlt_data.engines.transformers.scoring import Scorer
from rlt_data.formats import Problem, Views, encode, load_format
from rlt_data.settings import GenerateSettings, ModelSettings
from rlt_data.steps.generate import generate

QUESTIONS = Path(__file__).parent.parent / "recipes" / "demo" / "questions.jsonl"
#: Format of the step's prompts; without examples, so that they are short.
FORMAT = "rlt"
#: A stop text that models do not write, with a last character as rare as that of a tag.
NEVER = "<|never|>"


class Ours:
    """The transformers engine of rlt-data, and the complete ``generate`` step."""

    def __init__(self, model: str, dtype: str) -> None:
        self._settings = ModelSettings(engine="transformers", device="cpu", dtype=dtype)
        self._model = open_model(model, self._settings, scoring=True)
        self._engine = self._load()
        self._engine.model._model.generation_config.eos_token_id = -1  # samples have the requested length

    def _load(self) -> TransformersEngine:
        engine = self._model.engine
        assert isinstance(engine, TransformersEngine)
        return engine

    def score(self, texts: Texts, batch_tokens: int | None = None) -> list[list[float]]:
        """Score texts, in passes of at most ``batch_tokens`` tokens instead of the engine's default."""
        group = [
            SequenceRequest(str(index), np.array(prompt + text, np.int32), _positions(prompt, text))
            for index, (prompt, text) in enumerate(texts)
        ]
        if batch_tokens is None:
            results = self._engine.logprobs([[group]], 1.0)
        else:
            results = Scorer(self._engine.model, batch_tokens).logprobs([group], 1.0)
        return [logprobs for _, logprobs in sorted(map(_logprobs, results))]

    def generate(self, prompts: list[list[int]], samples: int, tokens: int) -> int:
        """Draw samples of ``tokens`` tokens; return the number of tokens drawn."""
        requests = [
            PromptRequest(
                np.array(prompt, np.int32),
                [SampleRequest(f"{row}/{sample}", row * samples + sample) for sample in range(samples)],
            )
            for row, prompt in enumerate(prompts)
        ]
        drawn = list(self._engine.generate([requests], Sampling(TEMPERATURE, 1.0, 0, tokens, NEVER)))
        return sum(len(sample.token_ids) for sample in drawn if isinstance(sample, Sample))

    def step(self, questions: int, samples: int, tokens: int) -> int:
        """Run the ``generate`` step; return the number of tokens drawn."""
        settings = GenerateSettings(
            input=str(QUESTIONS),
            limit=questions,
            format=FORMAT,
            teacher=self._model.checkpoint.name,
            n=samples,
            max_tokens=tokens,
            temperature=TEMPERATURE,
            **self._settings.model_dump(include={"engine", "device", "dtype"}),
        )
        # A new engine on the loaded model, because the step closes it.
        self._model.engine = TransformersEngine(self._engine.model, self._model.tokenizer, self._settings)
        return run_step(self._model, settings)

    def prompts(self, questions: int) -> list[list[int]]:
        """Return the token ids of the step's prompts."""
        model = self._model
        views = Views(load_format(FORMAT), model.template, model.control)
        rows = pl.read_ndjson(QUESTIONS).head(questions).iter_rows(named=True)
        prompts = [views.teacher_prompt(Problem(row["question"], row["solution"])) for row in rows]
        return [encoding.ids.tolist() for encoding in encode(model.tokenizer, prompts)]


class Plain(Ours):
    """The same scorer and generator on the unmodified model."""

    def _load(self) -> TransformersEngine:
        checkpoint = self._model.checkpoint
        model = CausalModel(unmodified(str(checkpoint.folder), self._settings.dtype), checkpoint.name, exact=False)
        return TransformersEngine(model, self._model.tokenizer, self._settings)


def run_step(model: Model, settings: GenerateSettings) -> int:
    """Run the ``generate`` step with a loaded model, in a new folder; return the number of tokens drawn."""
    opened = mock.patch("rlt_data.steps.generate.open_model", return_value=model)
    with tempfile.TemporaryDirectory() as folder, opened:
        summary = generate(settings.model_copy(update={"out": f"{folder}/run"}))
    assert summary.new == settings.n * (settings.limit or 0), summary.failure
    return summary.tokens


def _positions(prompt: list[int], text: list[int]) -> np.ndarray:
    return np.arange(len(prompt), len(prompt) + len(text), dtype=np.int32)


def _logprobs(result: SequenceLogprobs | Failure) -> tuple[int, list[float]]:
    assert isinstance(result, SequenceLogprobs), result
    return int(result.key), result.logprobs.tolist()
