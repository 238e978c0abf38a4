"""Run recipes: settings by scale, cached steps, parallel seeds, and results as figures, table and plot.

``python -m rlt_data.recipes NAME --scale SCALE`` runs a recipe: a package with ``recipe.py``, whose function
``run(experiment)`` does the work, and one YAML file per scale. A section of the YAML file contains the settings of one
step, with the keys of its command; ``experiment.step`` runs the step. Its result is stored under a hash of the
settings, so an interrupted recipe continues where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, is_dataclass
from importlib import import_module, resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from rlt_data import plots
from rlt_data.errors import InputError, RltDataError, SettingsError, did_you_mean, first_line
from rlt_data.settings import Settings, TrainingSettings, parse_settings, parse_yaml
from rlt_data.steps.provenance import versions
from rlt_data.steps.registry import STEPS, Step
from rlt_data.storage.outputs import write_json

#: Keys whose values differ from arm to arm by nature.
_PATHS = {"in", "out", "output_dir", "seed", "model", "teacher", "student"}


@dataclass
class Experiment:
    """A running recipe.

    Attributes:
        recipe: name of the recipe.
        config: settings by section, and for all sections ``seeds``, ``workers`` and ``launcher`` (name of a file in
            recipes/accelerate, for training on several GPUs).
        out: output folder.
        dry_run: whether to only check and print the settings of every step.
        scale: name or file of the settings.
    """

    recipe: str
    config: dict[str, Any]
    out: Path
    dry_run: bool = False
    scale: str = "nano"
    _shown: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        """Seeds with which to repeat the experiment."""
        return list(range(int(self.config["seeds"])))

    def step(self, name: str, section: str | None = None, **keys: Any) -> dict[str, Any]:
        """Run a step, or return its stored result.

        Args:
            name: name of a step in :data:`rlt_data.steps.registry.STEPS`.
            section: config section of the step; default: its name.
            keys: settings that override the section; write ``in_`` and ``lambda_`` for ``in`` and ``lambda``.
        """
        step = STEPS[name]
        content = self._section(section or name) | {key.rstrip("_"): value for key, value in keys.items()}
        settings = parse_settings(step.settings, content, where=f"{self.recipe}, section {section or name}")
        if self.dry_run:
            self._show(name, section or name, settings)
            return {}

        def work() -> dict[str, Any]:
            if step.trains and self.config.get("launcher"):
                return self._launch(name, settings)
            return _run_in_process(step, settings) if _uses_gpu(settings) else _run(step, settings)

        return self.stored(name, settings.model_dump(mode="json"), work)

    def stored(self, name: str, settings: Any, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the stored result of some work, or do it.

        Args:
            name: what the work is, as part of a file name.
            settings: JSON values on which the result depends.
            work: does the work, and returns JSON values.
        """
        text = json.dumps([name, settings], sort_keys=True)
        stored = self.out / "steps" / f"{name}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}.json"
        if stored.is_file():
            return dict(json.loads(stored.read_text(encoding="utf-8")))
        start = time.monotonic()
        result = work() | {"seconds": time.monotonic() - start}
        write_json(stored, result)
        return result

    def _section(self, name: str) -> dict[str, Any]:
        """Return the settings of a section; a dot names a subsection, as in ``train.countdown``."""
        section: Any = self.config
        for key in name.split("."):
            section = section.get(key) or {}
        return dict(section)

    def _launch(self, name: str, settings: Settings) -> dict[str, Any]:
        """Run a training with ``accelerate launch`` and the configuration that ``launcher`` names."""
        assert isinstance(settings, TrainingSettings)
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
            yaml.safe_dump(settings.model_dump(mode="json", by_alias=True), file)
            file.flush()
            command = ["-m", "rlt_data.cli.main", *STEPS[name].command.split(), "--config", file.name]
            code = subprocess.run([*self.launcher(), *command], check=False).returncode
            if code:
                raise RltDataError(f"{self.recipe}: {name} for {settings.out} failed with code {code}; see above")
        recorded = json.loads((Path(settings.out) / "training.json").read_text(encoding="utf-8"))
        best = Path(settings.out, "best")
        return {"out": settings.out, **recorded, "best": str(best) if best.is_dir() else None}

    def launcher(self) -> list[str]:
        """Return the command that runs Python, on all GPUs with the accelerate configuration that ``launcher`` names.

        Raises:
            SettingsError: the configuration needs a package that is not installed.
        """
        name = self.config.get("launcher")
        if name is None:
            return [sys.executable]
        if name == "zero3" and find_spec("deepspeed") is None:
            raise SettingsError("launcher: zero3 needs DeepSpeed; pip install deepspeed, or set launcher: fsdp2")
        file = resources.files("rlt_data.recipes").joinpath("accelerate", f"{name}.yaml")
        return [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(file)]

    def _show(self, name: str, section: str, settings: Settings) -> None:
        """Print the settings of a step."""
        self.show(f"rlt-data {STEPS[name].command}", section, settings.model_dump(mode="json", by_alias=True))

    def show(self, command: str, section: str, shown: dict[str, Any]) -> None:
        """Print a command's settings; if its section was shown before, those that are not the same for all arms."""
        first = self._shown.setdefault(section, shown)
        changed = [f"{key}: {value}" for key, value in shown.items() if key not in _PATHS and first[key] != value]
        line = f"# section {section}, again with {', '.join(changed)}"
        if first is shown:
            print(f"{command}  # section {section}")
            print("".join(f"  {key}: {value}\n" for key, value in shown.items()), end="")
        elif changed and line not in self._shown:
            self._shown[line] = {}
            print(line)

    def run_all(self, work: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> list[Any]:
        """Run ``work(experiment, *call)`` for each call in ``workers`` parallel processes; return results in order."""
        calls = list(calls)
        workers = min(int(self.config.get("workers", 1)), len(calls))
        if workers < 2 or self.dry_run:
            return [work(self, *call) for call in calls]
        start, done = time.monotonic(), 0
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        results: list[Any] = [None] * len(calls)
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _quiet) as pool:
            futures = {pool.submit(work, self, *call): index for index, call in enumerate(calls)}
            try:
                for future in as_completed(futures):
                    results[futures[future]] = future.result()
                    done += 1
                    left = (time.monotonic() - start) / done * (len(calls) - done) / 60
                    print(
                        f"{self.recipe}: {work.__name__} {done} of {len(calls)}, about {left:.1f} min left", flush=True
                    )
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return results

    def path(self, *parts: Any) -> str:
        """Return a path in the recipe's folder."""
        return str(self.out.joinpath(*map(str, parts)))


def _quiet() -> None:
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("rlt_data").setLevel(logging.WARNING)


def _uses_gpu(settings: Settings) -> bool:
    """Whether a step runs a model on a GPU."""
    import torch

    return getattr(settings, "device", "cpu") not in ("cpu", "mps") and torch.cuda.is_available()


def _run_in_process(step: Step, settings: Settings) -> dict[str, Any]:
    """Run a step in a new process, which frees all GPU memory when it ends."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _quiet) as pool:
        return pool.submit(_run, step, settings).result()


def _run(step: Step, settings: Settings) -> dict[str, Any]:
    """Call a step's function, and return its result as JSON values."""
    result = step.load()(settings)
    content = asdict(result) if is_dataclass(result) and not isinstance(result, type) else {"result": result}
    return dict(json.loads(json.dumps(content, default=str)))


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds, half-width of its 95 % interval (Student's t), and the values."""

    mean: float
    half: float
    values: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.half:.3f}" if len(self.values) > 1 else f"{self.mean:.3f}"


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of values and its 95 % interval."""
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return Estimate(mean, math.nan, tuple(values))
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    from scipy.stats import t

    return Estimate(mean, float(t.ppf(0.975, count - 1)) * deviation / math.sqrt(count), tuple(values))


def pearson(one: Sequence[float], other: Sequence[float]) -> float:
    """Return Pearson's correlation of two columns."""
    from scipy.stats import pearsonr

    return float(pearsonr(one, other).statistic)


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Return Spearman's rank correlation of two columns; ties get their mean rank."""
    from scipy.stats import spearmanr

    return float(spearmanr(one, other).statistic)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = [columns, ["---"] * len(columns), *([str(value) for value in row] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def publish(
    experiment: Experiment, figures: Mapping[str, Any], text: str, draw: Callable[[Any], None] | None = None
) -> None:
    """Write figures (JSON), table (Markdown) and plot (SVG) to the recipe's folder, and print the table.

    Args:
        experiment: running recipe.
        figures: all measured values.
        text: table and notes in Markdown.
        draw: function that draws the plot on Matplotlib axes.
    """
    folder = experiment.out / "results"
    folder.mkdir(parents=True, exist_ok=True)
    command = f"python -m rlt_data.recipes {experiment.recipe} --scale {experiment.scale}"
    seeds = len(experiment.seeds)
    text = f"`{command}`, {seeds} seed{'s' * (seeds > 1)}; means with 95 % intervals (Student's t) over them.\n\n{text}"
    content = {"command": command, "versions": versions("trl"), "config": experiment.config, **figures}
    (folder / f"{experiment.recipe}.json").write_text(
        json.dumps(content, indent=2, default=_json) + "\n", encoding="utf-8"
    )
    (folder / f"{experiment.recipe}.md").write_text(text, encoding="utf-8")
    print(text)
    if draw:
        picture = plots.svg(lambda figure: draw(figure.subplots()), experiment.recipe, white=True)
        (folder / f"{experiment.recipe}.svg").write_text(picture, encoding="utf-8")


def _json(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a recipe from the command line.

    Args:
        arguments: command-line arguments; default: ``sys.argv[1:]``.
    """
    parser = argparse.ArgumentParser(prog="python -m rlt_data.recipes")
    parser.add_argument("recipe", choices=recipes(), metavar="NAME", help=", ".join(recipes()))
    parser.add_argument(
        "--scale", default="nano", help="nano, single-24gb, single-gpu, paper, or the path of a YAML file"
    )
    parser.add_argument("--out", help="output folder; default: runs/NAME-SCALE")
    parser.add_argument("--dry-run", action="store_true", help="check and print the settings of every step")
    options = parser.parse_args(arguments)
    out = Path(options.out or f"runs/{options.recipe}-{Path(options.scale).stem}")
    try:
        _quiet()
        start = time.monotonic()
        config = checked_config(options.recipe, options.scale)
        experiment = Experiment(options.recipe, config, out, options.dry_run, options.scale)
        import_module(f"rlt_data.recipes.{options.recipe}.recipe").run(experiment)
        if not options.dry_run:
            print(f"{options.recipe}: {(time.monotonic() - start) / 60:.1f} min; results in {out / 'results'}")
    except RltDataError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def recipes() -> list[str]:
    """Return the names of all recipes."""
    folders = resources.files("rlt_data.recipes").iterdir()
    return sorted(folder.name for folder in folders if folder.joinpath("recipe.py").is_file())


def load_config(recipe: str, scale: str, extended_by: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read the settings of a scale, from a YAML file of the recipe by name or any file by path.

    The key ``extends`` names another scale, or a file relative to this one. The file's sections are merged into those
    of that scale, key by key; a null removes a key.

    Args:
        recipe: name of the recipe.
        scale: name or path of the file.
        extended_by: files that extend this one.

    Raises:
        SettingsError: a file cannot be read, is not a YAML mapping, or extends itself.
    """
    packaged = resources.files(f"rlt_data.recipes.{recipe}").joinpath(f"{scale}.yaml")
    try:
        text = packaged.read_text(encoding="utf-8") if packaged.is_file() else Path(scale).read_text(encoding="utf-8")
        config = parse_yaml(text, scale)
    except (OSError, UnicodeDecodeError, InputError) as error:
        raise SettingsError(
            f"--scale: {scale}: cannot be read ({first_line(error)}); "
            "set nano, single-24gb, single-gpu, paper, or a YAML file"
        ) from None
    if config is None:
        raise SettingsError(f"--scale: {scale}: must be a YAML mapping with a section for each step")
    if scale in extended_by:
        raise SettingsError(f"--scale: {scale}: extends itself")
    if (extended := config.pop("extends", None)) is None:
        return config
    beside = Path(scale).parent / str(extended)
    found = str(beside) if beside.is_file() else str(extended)
    return merged(load_config(recipe, found, (*extended_by, scale)), config)


class _Section(dict[str, Any]):
    """Settings of a config, or of a section in it; using a key that is missing raises SettingsError."""

    def __init__(self, content: Mapping[str, Any], name: str) -> None:
        super().__init__(
            (key, _Section(v, f"{name}, {key}") if isinstance(v, dict) else v) for key, v in content.items()
        )
        self.name = name

    def __missing__(self, key: str) -> Any:
        raise SettingsError(f"--scale: {self.name}: the key {key!r} is missing")


yaml.SafeDumper.add_representer(_Section, yaml.SafeDumper.represent_dict)


def checked_config(recipe: str, scale: str) -> dict[str, Any]:
    """Read the settings of a scale (:func:`load_config`), and check their keys against the recipe's own scales.

    Args:
        recipe: name of the recipe.
        scale: name or path of the file.

    Raises:
        SettingsError: a key is unknown or has a value of the wrong type, also later, when a missing key is used.
    """
    config = load_config(recipe, scale)
    files = resources.files(f"rlt_data.recipes.{recipe}").iterdir()
    names = sorted(Path(file.name).stem for file in files if file.name.endswith(".yaml"))
    known: dict[str, Any] = {"launcher": None} | dict.fromkeys(STEPS, {})
    for name in names:
        known |= load_config(recipe, name)
    for key, value in config.items():
        if key not in known:
            raise SettingsError(f"--scale: {scale}: the recipe has no key {key!r}{did_you_mean(str(key), known)}")
        if isinstance(known[key], dict) and not isinstance(value, dict):
            raise SettingsError(f"--scale: {scale}: {key} must be a mapping (got {value!r})")
    for key in ("seeds", "workers"):
        if key in config and (not isinstance(config[key], int) or config[key] < 1):
            raise SettingsError(f"--scale: {scale}: {key} must be a whole number from 1 (got {config[key]!r})")
    launchers = [Path(file.name).stem for file in resources.files("rlt_data.recipes").joinpath("accelerate").iterdir()]
    if config.get("launcher") not in (None, *launchers):
        raise SettingsError(f"--scale: {scale}: launcher must be one of {', '.join(sorted(launchers))}")
    return _Section(config, scale)


def merged(config: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with changes, key by key; null removes a key."""
    result = dict(config)
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        elif value is None:
            result.pop(key, None)
        else:
            result[key] = value
    return result
