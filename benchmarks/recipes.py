"""GPU memory, time and cost of every step of the recipes on three machines, for one seed.

    python -m benchmarks.recipes

Nothing is measured. Each shipped YAML file, except those of the miniature, runs as a dry run for one 24 GB GPU, one
80 GB GPU and eight of them, and every step that it would do is estimated once.

Memory is that of one GPU, as ``--dry-run`` estimates it: of a training with the longest row or sample that the settings
allow, and of an engine with weights, a forward pass, and the keys and values of one text of the greatest length (vLLM
fills the rest with further texts). Models have the shapes of Qwen2.5.

Time assumes shares of what the data sheets allow (``benchmarks.scaling``). Traces and answers count 400 tokens with the
1.5B model and 4,000 with larger ones; questions and solutions have 400 tokens each. RL samples with the part of the
memory that vLLM may use (``--vllm-memory``), scores each sample with the student if the reward is dense, and trains on
it: a forward pass, its repetition, a backward pass of twice the operations (once with LoRA), and a forward pass of the
reference model. TRL's self-distillation is RL without rewards, whose reference model is the teacher. Settings with a
launcher use all GPUs of a machine, others one. The overhead of engines is not included.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from importlib import import_module, resources
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config

from benchmarks.limits import STUDENTS
from benchmarks.operations import Decoder
from benchmarks.report import markdown, save, save_markdown
from benchmarks.scaling import MACHINES, MEMORY_SHARE, Gpu, decoding_limit
from rlt_data.engines.memory import estimate_memory, fitting_texts
from rlt_data.recipes.experiment import Experiment, load_config, recipes
from rlt_data.settings import Settings, TrainSolverSettings
from rlt_data.settings.training import DEFAULT_STEPS
from rlt_data.steps.registry import STEPS
from rlt_data.training.memory import Estimator, Machine

EFFICIENCY, TRAINING_EFFICIENCY = 0.5, 0.4
QUESTION = SOLUTION = 400
#: Rows of data sets, and questions of benchmarks.
ROWS = {
    "bespokelabs/Bespoke-Stratos-17k": 17_000,
    "openai/gsm8k": 7_473,
    "GAIR/LIMR": 1_389,
    "simplescaling/s1K": 1_000,
    "NovaSky-AI/Sky-T1_data_17k": 17_000,
}
BENCHMARKS = {"aime24": 30, "math500": 500, "gpqa-diamond": 198, "gsm8k": 1_319}
_GIB = 2**30
#: Bytes per token and vocabulary entry when TRL's SDFTTrainer computes gradients: logits of both models and three
#: gradients, in float32. The peak in PyTorch's profiler, with vocabularies of 20,000 and 40,000, is 20.0.
_SELF_DISTILLATION_LOGITS = 20
#: Default of its ``vllm_gpu_memory_utilization``.
_TRL_VLLM_MEMORY = 0.3


@dataclass(frozen=True)
class Model:
    """A model of the Qwen2.5 family.

    Attributes:
        name: part of its name on the Hub.
        tied: the embeddings are the LM head.
    """

    name: str
    decoder: Decoder
    tied: bool = False

    @cached_property
    def config(self) -> Any:
        """The model's configuration."""
        sizes = self.decoder
        return Qwen2Config(
            vocab_size=sizes.vocabulary,
            hidden_size=sizes.hidden,
            intermediate_size=sizes.feed_forward,
            num_hidden_layers=len(sizes.windows),
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.kv_heads,
            tie_word_embeddings=self.tied,
            dtype="bfloat16",
        )

    @property
    def weight_bytes(self) -> int:
        """Size of the weights in bfloat16."""
        return 2 * (self.decoder.layer_parameters + (1 if self.tied else 2) * self.decoder.head_parameters)


MODELS = (
    # From the model's config.json.
    Model("Qwen2.5-1.5B", Decoder(1536, 12, 2, 128, 8960, 151936, windows=(None,) * 28), tied=True),
    *(Model(name, decoder) for name, decoder in STUDENTS.items()),
)
SMALL, MIDDLE, _ = MODELS


@dataclass(frozen=True)
class Scale:
    """What settings are made for.

    Attributes:
        machine: index of the machine in :data:`benchmarks.scaling.MACHINES`.
        model: models that other recipes have trained.
        text: tokens of traces and answers.
    """

    machine: int
    model: Model
    text: int


_PAPER = Scale(2, MIDDLE, 4000)
SCALES = {
    "single-24gb": Scale(0, SMALL, 400),
    "single-gpu": Scale(1, SMALL, 400),
    "paper": _PAPER,
    "paper-32b": _PAPER,
    "paper-ablations": _PAPER,
}


#: Model, memory of one GPU in GiB, whether it has that, and seconds.
Found = tuple[Model, float, bool, float]


@dataclass
class Step:
    """A step of a recipe on a machine, with all its calls.

    Attributes:
        step: command and section.
        model: model that is trained or run.
        calls: number of calls.
        gib: largest memory of a call on one GPU.
        fits: whether the GPU has that memory.
        seconds: time of all calls; infinite if no text fits.
        dollars: price of the GPUs that the settings use.
    """

    step: str
    model: str
    calls: int = 0
    gib: float = 0.0
    fits: bool = True
    seconds: float = 0.0
    dollars: float = 0.0


@dataclass
class Priced(Experiment):
    """A dry run that estimates its steps on a machine."""

    machine: tuple[int, Gpu] = MACHINES[0]
    steps: dict[tuple[str, str], Step] = field(default_factory=dict)
    #: Questions and rows of files, runs and data sets that earlier steps make.
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    #: Models that earlier steps train.
    trained: dict[str, Model] = field(default_factory=dict)
    priced: set[str] = field(default_factory=set)

    def _show(self, name: str, section: str, settings: Settings) -> None:
        """Estimate a step, where a dry run would print it."""
        if estimate := getattr(self, f"_{name}", None):
            self._price(STEPS[name].command, section, settings, estimate)

    def show(self, command: str, section: str, shown: dict[str, Any]) -> None:
        """Estimate a script; the only one is TRL's for self-distillation."""
        self._price("SDFTTrainer", section, shown, self._self_distillation)

    def _price(self, command: str, section: str, settings: Any, estimate: Callable[[Any], Found | None]) -> None:
        """Add an estimate, unless it needs no GPU; a recipe runs equal steps once."""
        if (key := f"{command} {settings!r}") in self.priced:
            return
        self.priced.add(key)
        if (found := estimate(settings)) is None:
            return
        model, gib, fits, seconds = found
        labels = f"{command} ({section})", model.name
        step = self.steps.setdefault(labels, Step(*labels))
        step.calls, step.gib, step.fits = step.calls + 1, max(step.gib, gib), step.fits and fits
        step.seconds += seconds
        step.dollars += seconds / 3600 * self.gpus * self.machine[1].price

    @property
    def of_scale(self) -> Scale:
        return SCALES[self.scale]

    @property
    def gpus(self) -> int:
        """Number of GPUs that the settings use."""
        return self.machine[0] if "launcher" in self.config else 1

    def _model(self, name: str) -> Model:
        named = (model for model in MODELS if model.name.removeprefix("Qwen2.5") in name)
        return self.trained.get(name) or next(named, self.of_scale.model)

    def _size(self, settings: Any) -> tuple[int, int]:
        """Return the numbers of questions and rows of a step's input.

        An input without a name is one that the recipe selects from the last run; all its questions count. A file that
        the recipe writes, or a run of another recipe, counts as the training questions.
        """
        name, limit = settings.input or next(reversed(self.sizes)), getattr(settings, "limit", None)
        if name not in self.sizes and name.startswith("runs/"):
            section = self.config.get("train") or self.config["train-home"]
            name, limit = section["in"], section.get("limit")
        if name not in self.sizes and name not in ROWS:
            raise SystemExit(f"{self.recipe}: add the number of rows of {name} to ROWS of benchmarks/recipes.py")
        questions, rows = self.sizes[name] if name in self.sizes else (ROWS[name], ROWS[name])
        limit = limit or rows
        return min(questions, limit), min(rows, limit)

    def _sampling(
        self, model: Model, samples: int, prompt: int, share: float = MEMORY_SHARE, parallel: int = 1
    ) -> float:
        """Return the seconds in which engines of ``parallel`` GPUs draw samples."""
        gpu, text = self.machine[1], self.of_scale.text
        engine = replace(
            gpu,
            gigabytes=parallel * gpu.gigabytes,
            flops=parallel * gpu.flops,
            bytes_per_second=parallel * gpu.bytes_per_second,
        )
        rate, at_a_time = decoding_limit(engine, model.decoder, prompt, text, share)
        return samples * text / (EFFICIENCY * rate * self.gpus / parallel) if at_a_time > 0 else math.inf

    def _passes(self, model: Model, texts: float, passes: int, efficiency: float) -> float:
        """Return the seconds of passes with the operations of a forward pass over complete texts."""
        scored = self.of_scale.text + SOLUTION
        operations = passes * texts * model.decoder.operations(QUESTION + scored, 0, scored)
        return operations / (efficiency * self.machine[1].flops * self.gpus)

    def _engines(self, settings: Any, models: list[Model], tokens: int, *, scoring: bool) -> tuple[float, bool, int]:
        """Return the memory of the engines of a step, whether a GPU has it, and the GPUs of an engine."""
        parallel = min(settings.tensor_parallel, self.gpus)
        used = settings.model_copy(update={"tensor_parallel": parallel})
        memory = [
            estimate_memory(model.name, model.config, used, model.weight_bytes, torch.bfloat16, tokens, scoring=scoring)
            for model in models
        ]
        gib = sum(part.weights_gib + part.cache_gib + part.pass_gib for part in memory)
        return gib, fitting_texts(memory, self.machine[1].gigabytes * settings.gpu_memory) > 0, parallel

    def _training(
        self, settings: Any, model: Model, length: int, student: int = 0, logits: int | None = None
    ) -> tuple[float, bool]:
        """Return the memory of a training, whose logits can have another size, and whether a GPU has it."""
        machine = Machine(
            "",
            gpus=self.gpus,
            gpu_bytes=self.machine[1].gigabytes * _GIB,
            sharded=self.gpus > 1,
            offload=self.gpus > 1 and self.config["launcher"] == "fsdp2-offload",
        )
        memory = _estimator(model, length, student).memory(settings, machine)
        memory = replace(memory, logits=memory.logits if logits is None else logits)
        return memory.total / _GIB, bool(memory.fits)

    def _countdown(self, settings: Any) -> None:
        self.sizes[settings.out] = settings.rows, settings.rows

    def _distill(self, settings: Any) -> None:
        questions, _ = self._size(settings)
        self.sizes[settings.out] = questions, questions

    def _generate(self, settings: Any) -> Found:
        questions, _ = self._size(settings)
        self.sizes[settings.out] = questions, questions * settings.n
        model, prompt = self._model(settings.teacher), QUESTION + SOLUTION
        gib, fits, parallel = self._engines(settings, [model], prompt + settings.max_tokens, scoring=False)
        return model, gib, fits, self._sampling(model, questions * settings.n, prompt, parallel=parallel)

    def _score(self, settings: Any) -> Found:
        questions, traces = self._size(settings)
        self.sizes[settings.out or settings.input] = questions, traces
        models = [self._model(name) for name in (settings.student, settings.teacher) if name not in (None, "none")]
        longest = QUESTION + self.config["generate"]["max_tokens"] + SOLUTION
        gib, fits, _ = self._engines(settings, models, longest, scoring=True)
        return models[0], gib, fits, sum(self._passes(model, traces, 1, EFFICIENCY) for model in models)

    def _evaluate(self, settings: Any) -> Found:
        questions = self._size(settings)[0] if settings.input else BENCHMARKS[settings.benchmark]
        answers = questions * settings.n
        self.sizes[settings.out] = questions, answers
        model = self._model(settings.model)
        gib, fits, parallel = self._engines(settings, [model], QUESTION + settings.max_tokens, scoring=False)
        return model, gib, fits, self._sampling(model, answers, QUESTION, parallel=parallel)

    def _student(self, settings: Any) -> Found:
        model = self.trained[settings.out] = self._model(settings.model)
        texts = settings.epochs * self._size(settings)[1]
        memory = self._training(settings, model, settings.max_length)
        return model, *memory, self._passes(model, texts, 3 if settings.lora_rank else 4, TRAINING_EFFICIENCY)

    _warmup = _student

    def _teacher(self, settings: Any) -> Found:
        student = self._model(settings.student)
        model, gib, fits, seconds = self._solver(settings, QUESTION + SOLUTION, student.weight_bytes)
        return model, gib, fits, seconds + self._passes(student, self._samples(settings), 1, EFFICIENCY)

    def _solver(self, settings: Any, prompt: int = QUESTION, student: int = 0) -> Found:
        model = self.trained[settings.out] = self._model(settings.model)
        samples = self._samples(settings)
        share = settings.vllm_memory if settings.vllm == "colocate" else MEMORY_SHARE
        passes = (3 if settings.lora_rank else 4) + (1 if settings.beta else 0)
        seconds = self._sampling(model, samples, prompt, share)
        seconds += self._passes(model, samples, passes, TRAINING_EFFICIENCY)
        return model, *self._training(settings, model, prompt + settings.max_tokens, student), seconds

    def _self_distillation(self, settings: dict[str, Any]) -> Found:
        model = self._model(settings["model"])
        batch, tokens = settings["per_device_train_batch_size"], settings["max_completion_length"]
        logits = _SELF_DISTILLATION_LOGITS * batch * tokens * model.decoder.vocabulary
        alike = TrainSolverSettings.model_validate(
            {
                "model": model.name,
                "in": "questions",
                "out": "trained",
                "vllm": "colocate",
                "vllm_memory": _TRL_VLLM_MEMORY,
                "micro_batch_size": batch,
                "max_tokens": tokens,
            }
        )
        samples = settings["max_steps"] * batch * settings["gradient_accumulation_steps"] * self.gpus
        seconds = self._sampling(model, samples, QUESTION, _TRL_VLLM_MEMORY)
        seconds += self._passes(model, samples, 5, TRAINING_EFFICIENCY)
        return model, *self._training(alike, model, QUESTION + tokens, logits=logits), seconds

    def _samples(self, settings: Any) -> int:
        """Return the number of samples in RL."""
        steps = settings.steps or DEFAULT_STEPS
        if settings.epochs:
            questions = self._size(settings)[0] - settings.held_out
            steps = math.ceil(settings.epochs * questions / settings.questions)
        return int(steps * settings.questions * settings.group)


@cache
def _estimator(model: Model, length: int, student: int) -> Estimator:
    return Estimator(model.config, length, student)


def shipped() -> list[tuple[str, str]]:
    """Return recipe and scale of all YAML files for GPUs."""
    files = (
        (recipe, file.name.removesuffix(".yaml"))
        for recipe in recipes()
        for file in resources.files(f"rlt_data.recipes.{recipe}").iterdir()
        if file.name.endswith(".yaml")
    )
    return sorted(pair for pair in files if load_config(*pair)["student"].get("device") != "cpu")


@cache
def steps(recipe: str, scale: str, machine: tuple[int, Gpu]) -> list[Step]:
    """Return the steps of a recipe on a machine that need a GPU."""
    config = load_config(recipe, scale) | {"seeds": 1}
    experiment = Priced(recipe, config, Path("runs"), dry_run=True, scale=scale, machine=machine)
    with redirect_stdout(io.StringIO()):
        import_module(f"rlt_data.recipes.{recipe}.recipe").run(experiment)
    return list(experiment.steps.values())


def all_steps() -> list[dict[str, Any]]:
    """Return the steps of all YAML files on all machines; those that do not fit have no time and price."""
    return [
        {"recipe": recipe, "scale": scale, "machine": _name(machine), **asdict(step)}
        | ({} if step.fits else {"seconds": None, "dollars": None})
        for recipe, scale in shipped()
        for machine in MACHINES
        for step in steps(recipe, scale, machine)
    ]


def by_step(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per step, with a column per machine."""
    rows: dict[str, dict[str, Any]] = {}
    for step in found:
        labels = {name: step[name] for name in ("recipe", "scale", "step", "calls", "model")}
        cost = f"{_time(step['seconds'])}, ${_price(step['dollars'])}" if step["fits"] else "does not fit"
        rows.setdefault(str(labels), labels)[step["machine"]] = f"{step['gib']:.1f} GiB, {cost}"
    return list(rows.values())


def by_file(recipe: str, scale: str) -> dict[str, Any]:
    """Return the sums over the steps of a YAML file on its machine."""
    machine = MACHINES[SCALES[scale].machine]
    found = steps(recipe, scale, machine)
    largest = max(found, key=lambda step: step.gib)
    return {
        "recipe": recipe,
        "scale": scale,
        "machine": _name(machine),
        "fits": "yes" if all(step.fits for step in found) else "no",
        "GiB per GPU": f"{largest.gib:.1f} ({largest.step})",
        "time": _time(sum(step.seconds for step in found)),
        "$": _price(sum(step.dollars for step in found)),
    }


def _name(machine: tuple[int, Gpu]) -> str:
    return f"{machine[0]} x {machine[1].gigabytes} GB"


def _time(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"


def _price(dollars: float) -> str:
    return f"{dollars:,.0f}" if dollars >= 10 else f"{dollars:.2f}"


def main() -> None:
    files, found = [by_file(*pair) for pair in shipped()], all_steps()
    print(markdown(files), markdown(by_step(found)), sep="\n", end="")
    save("recipes", {"files": files, "steps": found})
    save_markdown("recipes", files, by_step(found))


if __name__ == "__main__":
    main()
