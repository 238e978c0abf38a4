"""Find engines, rewards, input presets and export shapes by name; nothing is imported before it is used.

A name is one of three things: a built-in, an entry point of an installed package (groups ``rlt_data.engines``,
``rlt_data.rewards``, ``rlt_data.presets``, ``rlt_data.signals`` and ``rlt_data.shapes``), or ``module:function``.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rlt_data.errors import SettingsError, did_you_mean, one_line

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


@dataclass(frozen=True)
class Registry:
    """The functions of one kind, by name.

    Attributes:
        option: the setting that names the function, for messages.
        group: the entry-point group.
        built_in: ``module:function`` of the built-ins.
        other: further values of the setting, which name no function.
    """

    option: str
    group: str
    built_in: Mapping[str, str]
    other: tuple[str, ...] = ()

    def check(self, name: str) -> str:
        """Return the name if it can be loaded; for validators.

        Raises:
            ValueError: no function has this name.
        """
        if name in self.built_in or name in self.other or ":" in name:
            return name
        installed = self._entry_points()
        if name in installed:
            return name
        known = [*self.other, *self.built_in, *sorted(installed)]
        raise ValueError(f"takes {', '.join(known)}, or module:function{did_you_mean(name, known)}")

    def names(self) -> list[str]:
        """Return the names of the built-ins and of the entry points."""
        return [*self.built_in, *sorted(self._entry_points())]

    def load(self, name: str) -> Callable[..., Any]:
        """Import a function.

        Raises:
            SettingsError: no function has this name, its module cannot be imported, or it is not a function.
        """
        return self._import(name)[1]

    def identity(self, name: str) -> str | None:
        """Return what identifies the code behind a name, for records; None for built-ins.

        This is the name with a hash of the source file, so that results of two versions are never mixed.
        """
        if name in self.built_in or name in self.other:
            return None
        module, _ = self._import(name)
        file = getattr(module, "__file__", None)
        source = Path(file).read_bytes() if file else b""
        return f"{name} {hashlib.blake2b(source, digest_size=8).hexdigest()}"

    def _import(self, name: str) -> tuple[ModuleType, Callable[..., Any]]:
        """Return the module that a name leads to, and the function."""
        target, label = self._target(name)
        module_name, _, attribute = target.partition(":")
        if name not in self.built_in and os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # last, so that a file here never hides an installed module
        try:
            module = import_module(module_name)
        except Exception as error:  # noqa: BLE001 - importing runs the user's code
            raise SettingsError(
                f"{label}: cannot import {module_name}: {type(error).__name__}: {one_line(error)}"
            ) from error
        function: Any = module
        for part in attribute.split("."):
            if not hasattr(function, part):
                raise SettingsError(f"{label}: {module_name} has no {part!r}{did_you_mean(part, dir(function))}")
            function = getattr(function, part)
        if not callable(function):
            raise SettingsError(f"{label}: {attribute} is not a function but {type(function).__name__}")
        return module, function

    def _target(self, name: str) -> tuple[str, str]:
        """Return the ``module:function`` behind a name, and the label of the setting in messages."""
        label = f"{self.option}: {name}"
        if name in self.built_in:
            return self.built_in[name], label
        if entry := self._entry_points().get(name):
            return entry.value.partition("[")[0].strip(), f"{label} (entry point {entry.value})"
        module_name, colon, attribute = name.partition(":")
        if not colon:
            try:
                self.check(name)
            except ValueError as error:
                raise SettingsError(f"{label}: {error}") from None
        if not module_name or not all(part.isidentifier() for part in f"{module_name}.{attribute}".split(".")):
            raise SettingsError(f"{label}: takes module:function, such as rewards:short")
        return name, label

    def _entry_points(self) -> dict[str, EntryPoint]:
        from importlib.metadata import entry_points  # here, because only names that are not built in need it

        return {entry.name: entry for entry in entry_points(group=self.group)}


ENGINES = Registry(
    "engine",
    "rlt_data.engines",
    {
        "transformers": "rlt_data.engines.open:open_transformers",
        "vllm": "rlt_data.engines.open:open_vllm",
        "server": "rlt_data.engines.open:open_server",
    },
    other=("auto",),
)

REWARDS = Registry("reward", "rlt_data.rewards", {"rlt": "rlt_data.scoring.rewards:rlt"})

PRESETS = Registry(
    "preset",
    "rlt_data.presets",
    {
        "question-solution": "rlt_data.inputs.presets:question_solution",
        "question-answer": "rlt_data.inputs.presets:question_answer",
        "prompt-completion": "rlt_data.inputs.presets:prompt_completion",
        "instruction-output": "rlt_data.inputs.presets:instruction_output",
        "generations": "rlt_data.inputs.presets:generations",
        "verl": "rlt_data.inputs.presets:verl",
        "gsm8k": "rlt_data.inputs.presets:gsm8k",
        "math": "rlt_data.inputs.presets:math_problem",
        "s1k": "rlt_data.inputs.presets:s1k",
        "bespoke": "rlt_data.inputs.presets:sharegpt",
        "sharegpt": "rlt_data.inputs.presets:sharegpt",
        "messages": "rlt_data.inputs.presets:messages",
        "columns": "rlt_data.inputs.presets:columns",
    },
    other=("auto",),
)

#: Built-in signals are in :mod:`rlt_data.signals.registry`.
SIGNALS = Registry("signals", "rlt_data.signals", {})

SHAPES = Registry(
    "shape",
    "rlt_data.shapes",
    {
        "messages": "rlt_data.steps.export_shapes:messages",
        "prompt-completion": "rlt_data.steps.export_shapes:prompt_completion",
        "sharegpt": "rlt_data.steps.export_shapes:sharegpt",
        "bespoke": "rlt_data.steps.export_shapes:bespoke",
        "preference": "rlt_data.steps.export_shapes:preference",
        "privileged": "rlt_data.steps.export_shapes:privileged",
    },
)
