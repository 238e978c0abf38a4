"""GPU hours and cost of the recipes on H100s, for one seed.

    python -m benchmarks.recipes

Nothing is measured. Each recipe runs as a dry run, and every step that it would do is priced once, at the assumed
shares of the data sheet's limits of ``benchmarks.scaling``. ``single-gpu`` counts as Qwen2.5-1.5B with traces and
answers of 400 tokens, ``paper`` as Qwen2.5-7B with 4,000 tokens; questions and solutions have 400 tokens each.

RL samples with the part of the memory that vLLM may use (``--vllm-memory``), scores each sample with the student if the
reward is dense, and trains on it: a forward pass, its repetition, a backward pass of twice the operations, and a
forward pass of the reference model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.operations import Decoder
from benchmarks.report import markdown, save
from benchmarks.scaling import H100, MEMORY_SHARE, MODEL, decoding_limit
from rlt_data.recipes.experiment import Experiment, load_config, recipes
from rlt_data.settings import Settings
from rlt_data.settings.training import DEFAULT_STEPS

EFFICIENCY, TRAINING_EFFICIENCY = 0.5, 0.4
QUESTION = SOLUTION = 400
#: Rows of data sets, and questions of benchmarks.
ROWS = {
    "bespokelabs/Bespoke-Stratos-17k": 17_000,
    "agentica-org/DeepScaleR-Preview-Dataset": 40_000,
    "openai/gsm8k": 7_473,
    "GAIR/LIMR": 1_389,
}
BENCHMARKS = {"aime24": 30, "math500": 500, "gpqa-diamond": 198, "gsm8k": 1_319}


@dataclass(frozen=True)
class Scale:
    """The model of a scale, and the tokens of its traces and answers."""

    model: Decoder
    text: int


SCALES = {
    # From the model's config.json.
    "single-gpu": Scale(Decoder(1536, 12, 2, 128, 8960, 151936, windows=(None,) * 28), 400),
    "paper": Scale(MODEL, 4000),
}


@dataclass
class Priced(Experiment):
    """A dry run that adds up the seconds of its steps on one GPU."""

    seconds: float = 0.0
    #: Questions and rows of files, runs and data sets that earlier steps make.
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    priced: set[str] = field(default_factory=set)

    def _show(self, name: str, section: str, settings: Settings) -> None:
        """Price a step, where a dry run would print it; a recipe runs equal steps once."""
        if (key := f"{name} {settings!r}") not in self.priced:
            self.priced.add(key)
            self.seconds += sum(getattr(self, f"_{name}", _nothing)(settings))

    @property
    def of_scale(self) -> Scale:
        return SCALES[self.scale]

    def _size(self, settings: Any) -> tuple[int, int]:
        """Return the numbers of questions and rows of a step's input.

        An input without a name is one that the recipe selects from the last run; all its questions count. A file that
        the recipe writes counts as its training questions.
        """
        name, limit = settings.input or next(reversed(self.sizes)), getattr(settings, "limit", None)
        if name.startswith(self.path("rows")) and name not in self.sizes:
            section = self.config.get("train") or self.config["train-home"]
            name, limit = section["in"], section.get("limit")
        if name not in self.sizes and name not in ROWS:
            raise SystemExit(f"{self.recipe}: add the number of rows of {name} to ROWS of benchmarks/recipes.py")
        questions, rows = self.sizes[name] if name in self.sizes else (ROWS[name], ROWS[name])
        limit = limit or rows
        return min(questions, limit), min(rows, limit)

    def _sampling(self, samples: int, prompt: int, memory_share: float = MEMORY_SHARE) -> float:
        model, text = self.of_scale.model, self.of_scale.text
        return samples * text / (EFFICIENCY * decoding_limit(H100, model, prompt, text, memory_share)[0])

    def _passes(self, texts: int, passes: int, efficiency: float) -> float:
        """Return the seconds of passes with the operations of a forward pass over complete texts."""
        scored = self.of_scale.text + SOLUTION
        return passes * texts * self.of_scale.model.operations(QUESTION + scored, 0, scored) / (efficiency * H100.flops)

    def _countdown(self, settings: Any) -> Iterator[float]:
        self.sizes[settings.out] = settings.rows, settings.rows
        yield 0.0

    def _generate(self, settings: Any) -> Iterator[float]:
        questions, _ = self._size(settings)
        self.sizes[settings.out] = questions, questions * settings.n
        yield self._sampling(questions * settings.n, QUESTION + SOLUTION)

    def _score(self, settings: Any) -> Iterator[float]:
        questions, traces = self._size(settings)
        self.sizes[settings.out or settings.input] = questions, traces
        yield self._passes(traces, 1, EFFICIENCY)

    def _distill(self, settings: Any) -> Iterator[float]:
        questions, _ = self._size(settings)
        self.sizes[settings.out] = questions, questions
        yield 0.0

    def _student(self, settings: Any) -> Iterator[float]:
        yield self._passes(settings.epochs * self._size(settings)[1], 4, TRAINING_EFFICIENCY)

    _warmup = _student

    def _teacher(self, settings: Any) -> Iterator[float]:
        yield from self._solver(settings)
        yield self._passes(self._samples(settings), 1, EFFICIENCY)

    def _solver(self, settings: Any) -> Iterator[float]:
        samples = self._samples(settings)
        share = settings.vllm_memory if settings.vllm == "colocate" else MEMORY_SHARE
        yield self._sampling(samples, QUESTION + SOLUTION, share)
        yield self._passes(samples, 5 if settings.beta else 4, TRAINING_EFFICIENCY)

    def _samples(self, settings: Any) -> int:
        """Return the number of samples in RL."""
        steps = settings.steps or DEFAULT_STEPS
        if settings.epochs:
            questions = self._size(settings)[0] - settings.held_out
            steps = math.ceil(settings.epochs * questions / settings.questions)
        return int(steps * settings.questions * settings.group)

    def _evaluate(self, settings: Any) -> Iterator[float]:
        questions = self._size(settings)[0] if settings.input else BENCHMARKS[settings.benchmark]
        answers = questions * settings.n
        self.sizes[settings.out] = questions, answers
        yield self._sampling(answers, QUESTION)


def _nothing(_: Settings) -> Iterator[float]:
    """Yield nothing for steps without a GPU."""
    yield from ()


def hours(recipe: str, scale: str) -> float:
    """Return the GPU hours of a recipe."""
    config = load_config(recipe, scale) | {"seeds": 1}
    experiment = Priced(recipe, config, Path("runs"), dry_run=True, scale=scale)
    import_module(f"rlt_data.recipes.{recipe}.recipe").run(experiment)
    return experiment.seconds / 3600


def rows() -> list[dict[str, object]]:
    """Return the table: one row per recipe."""
    table: list[dict[str, object]] = []
    for recipe in recipes():
        single, paper = (hours(recipe, scale) for scale in SCALES)
        table.append(
            {
                "recipe": recipe,
                "single-gpu, GPU hours": f"{single:,.1f}",
                "paper, GPU hours": f"{paper:,.0f}",
                "paper, $": f"{paper * H100.price:,.0f}",
            }
        )
    return table


def main() -> None:
    table = rows()
    print(markdown(table), end="")
    save("recipes", {"rows": table})


if __name__ == "__main__":
    main()
