"""What recipes share: settings by scale, steps that are done once, work side by side, figures, table and plot.

``python -m rlt_data.recipes NAME --scale SCALE`` runs a recipe: a package with ``recipe.py``, whose function
``run(experiment)`` does the work, and one YAML file per scale. Each section of a YAML file holds the settings of one
step, under the keys of its command; ``experiment.step`` runs a step with them. The result of a step is stored under a
hash of its settings, so an interrupted recipe continues where it stopped.
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
from rlt_data.errors import RltDataError, SettingsError, first_line
from rlt_data.settings import Settings, parse_settings
from rlt_data.steps.provenance import versions
from rlt_data.steps.registry import STEPS, Step
from rlt_data.storage.outputs import write_json


@dataclass
class Experiment:
    """A recipe at work.

    Attributes:
        recipe: its name.
        config: its settings, by section; ``seeds``, ``workers`` and ``launcher`` (a file of
            recipes/accelerate, for trainings on many GPUs) are for all of it.
        out: its folder.
        dry_run: only check every step's settings, and show them.
        scale: name or file of its settings.
    """

    recipe: str
    config: dict[str, Any]
    out: Path
    dry_run: bool = False
    scale: str = "nano"
    _shown: set[str] = field(default_factory=set)

    @property
    def seeds(self) -> list[int]:
        """Seeds to repeat everything with."""
        return list(range(int(self.config["seeds"])))

    def step(self, name: str, section: str | None = None, **keys: Any) -> dict[str, Any]:
        """Run a step, or return what it returned before.

        Args:
            name: one of :data:`rlt_data.steps.registry.STEPS`.
            section: section of the YAML file with its settings; default: its name.
            keys: more of them, which go first; ``in_`` and ``lambda_`` stand for ``in`` and ``lambda``.
        """
        step = STEPS[name]
        content = self._section(section or name) | {key.rstrip("_"): value for key, value in keys.items()}
        where = f"{self.recipe}, section {section or name}"
        settings = parse_settings(step.settings, content, where=where)
        if self.dry_run:
            self._show(name, section or name, settings)
            return {}
        text = json.dumps([name, settings.model_dump(mode="json")], sort_keys=True)
        kept = self.out / "steps" / f"{name}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}.json"
        if kept.is_file():
            return dict(json.loads(kept.read_text(encoding="utf-8")))
        began = time.monotonic()
        result = self._launch(name, settings) if step.trains and self.config.get("launcher") else None
        if result is None:
            result = _in_own_process(step, settings) if _uses_gpu(settings) else _run(step, settings)
        result |= {"seconds": time.monotonic() - began}
        write_json(kept, result)
        return result

    def _section(self, name: str) -> dict[str, Any]:
        """Return the settings under a name; a dot leads into a section, as in ``train.countdown``."""
        found: Any = self.config
        for part in name.split("."):
            found = found.get(part) or {}
        return dict(found)

    def _launch(self, name: str, settings: Settings) -> dict[str, Any]:
        """Run a training by ``accelerate launch``, with the shipped file that the recipe names as its launcher."""
        if self.config["launcher"] == "zero3" and find_spec("deepspeed") is None:
            raise SettingsError("launcher: zero3 needs DeepSpeed; pip install deepspeed, or take launcher: fsdp2")
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
            yaml.safe_dump(settings.model_dump(mode="json", by_alias=True), file)
            file.flush()
            command = ["-m", "rlt_data.cli.main", *STEPS[name].command.split(), "--config", file.name]
            shipped = resources.files("rlt_data.recipes").joinpath("accelerate", f"{self.config['launcher']}.yaml")
            launch = [
                sys.executable,
                "-m",
                "accelerate.commands.accelerate_cli",
                "launch",
                "--config_file",
                str(shipped),
            ]
            code = subprocess.run([*launch, *command], check=False).returncode
            if code:
                raise RltDataError(f"{self.recipe}: {name} for {settings.out} ended with code {code}; see above")  # type: ignore[attr-defined]
        found = json.loads((Path(settings.out) / "training.json").read_text(encoding="utf-8"))  # type: ignore[attr-defined]
        return {"out": str(settings.out), **found}  # type: ignore[attr-defined]

    def _show(self, name: str, section: str, settings: Settings) -> None:
        if section not in self._shown:
            self._shown.add(section)
            print(f"rlt-data {STEPS[name].command}  # section {section}")
            for key, value in settings.model_dump(mode="json", by_alias=True).items():
                print(f"  {key}: {value}")

    def each(self, work: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> list[Any]:
        """Call ``work(experiment, *call)`` for every call, as many side by side as the recipe has workers; in order."""
        calls = list(calls)
        workers = min(int(self.config.get("workers", 1)), len(calls))
        if workers < 2 or self.dry_run:
            return [work(self, *call) for call in calls]
        began, done = time.monotonic(), 0
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        results: list[Any] = [None] * len(calls)
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _quiet) as pool:
            places = {pool.submit(work, self, *call): place for place, call in enumerate(calls)}
            try:
                for future in as_completed(places):
                    results[places[future]] = future.result()
                    done += 1
                    left = (time.monotonic() - began) / done * (len(calls) - done) / 60
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


def _in_own_process(step: Step, settings: Settings) -> dict[str, Any]:
    """Run a step in a process that ends, and so gives all GPU memory back to the next step."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _quiet) as pool:
        return pool.submit(_run, step, settings).result()


def _run(step: Step, settings: Settings) -> dict[str, Any]:
    """Call a step's function, and return what it returns as plain values."""
    result = step.load()(settings)
    content = asdict(result) if is_dataclass(result) and not isinstance(result, type) else {"result": result}
    return dict(json.loads(json.dumps(content, default=str)))


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, half of its 95 % interval (Student's t), and the values."""

    mean: float
    half: float
    values: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.half:.3f}" if len(self.values) > 1 else f"{self.mean:.3f}"


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of a few values, and how far off it may be."""
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return Estimate(mean, math.nan, tuple(values))
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    from scipy.stats import t

    return Estimate(mean, float(t.ppf(0.975, count - 1)) * deviation / math.sqrt(count), tuple(values))


def pearson(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the linear correlation of two columns."""
    from scipy.stats import pearsonr

    return float(pearsonr(one, other).statistic)


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the rank correlation of two columns, ties sharing their mean rank."""
    from scipy.stats import spearmanr

    return float(spearmanr(one, other).statistic)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = [columns, ["---"] * len(columns), *([str(value) for value in row] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def publish(
    experiment: Experiment, figures: Mapping[str, Any], text: str, draw: Callable[[Any], None] | None = None
) -> None:
    """Write a recipe's figures (JSON), table (Markdown) and plot (SVG) into its folder, and print the table.

    Args:
        experiment: the recipe.
        figures: everything that was measured.
        text: the table and what it says.
        draw: draws on Matplotlib axes.
    """
    folder = experiment.out / "results"
    folder.mkdir(parents=True, exist_ok=True)
    command = f"python -m rlt_data.recipes {experiment.recipe} --scale {experiment.scale}"
    text = f"`{command}`, {len(experiment.seeds)} seeds; means with 95 % intervals (Student's t) over them.\n\n{text}"
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
        arguments: of the command line; default: the process's.
    """
    parser = argparse.ArgumentParser(prog="python -m rlt_data.recipes")
    parser.add_argument("recipe", choices=recipes(), metavar="NAME", help=", ".join(recipes()))
    parser.add_argument("--scale", default="nano", help="nano, single-gpu, paper, or a YAML file of your own")
    parser.add_argument("--out", help="folder for everything; default: runs/NAME-SCALE")
    parser.add_argument("--dry-run", action="store_true", help="check and show every step's settings")
    chosen = parser.parse_args(arguments)
    out = Path(chosen.out or f"runs/{chosen.recipe}-{Path(chosen.scale).stem}")
    try:
        _quiet()
        began = time.monotonic()
        experiment = Experiment(
            chosen.recipe, load_config(chosen.recipe, chosen.scale), out, chosen.dry_run, chosen.scale
        )
        import_module(f"rlt_data.recipes.{chosen.recipe}.recipe").run(experiment)
        if not chosen.dry_run:
            print(f"{chosen.recipe}: {(time.monotonic() - began) / 60:.1f} min; results in {out / 'results'}")
    except RltDataError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def recipes() -> list[str]:
    """Return the names of all recipes."""
    folders = resources.files("rlt_data.recipes").iterdir()
    return sorted(folder.name for folder in folders if folder.joinpath("recipe.py").is_file())


def load_config(recipe: str, scale: str) -> dict[str, Any]:
    """Read a scale's settings: a YAML file of the recipe by name, or any other by path.

    Raises:
        SettingsError: there is no such file, or it is no YAML mapping.
    """
    own = resources.files(f"rlt_data.recipes.{recipe}").joinpath(f"{scale}.yaml")
    try:
        text = own.read_text(encoding="utf-8") if own.is_file() else Path(scale).read_text(encoding="utf-8")
        found = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(
            f"--scale: {scale}: cannot be read ({first_line(error)}); takes nano, single-gpu, paper, or a YAML file"
        ) from None
    if not isinstance(found, dict):
        raise SettingsError(f"--scale: {scale}: a YAML mapping is needed, with a section for each step")
    return found
