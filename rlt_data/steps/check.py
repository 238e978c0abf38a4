"""Check an input without loading a model's weights."""

from __future__ import annotations

from rlt_data.formats import ControlTokens
from rlt_data.inputs import CheckReport
from rlt_data.inputs import check as check_input
from rlt_data.settings import CheckSettings, ModelSettings


def check(settings: CheckSettings) -> CheckReport:
    """Validate a complete input; implements ``rlt-data check``.

    Raises:
        InputError: the input cannot be read, or has no columns for question and solution.
        ModelError: the model of ``--model`` does not exist, or its tokenizer cannot be used.
        SettingsError: the format is unknown.
    """
    controls = []
    for name in settings.model:
        from rlt_data.engines import find_checkpoint, open_tokenizer  # imports torch

        models = ModelSettings(trust_remote_code=settings.trust_remote_code)
        controls.append(ControlTokens(*open_tokenizer(find_checkpoint(name, tokenizer_only=True), models), name))
    return check_input(settings, controls)
