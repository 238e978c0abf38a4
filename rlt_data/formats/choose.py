"""The format of a step."""

from __future__ import annotations

import logging
from pathlib import Path

from rlt_data.formats.schema import Format, load_format, own_format
from rlt_data.formats.views import ChatTemplate

logger = logging.getLogger(__name__)


def choose_format(name: str, template: ChatTemplate, model: str, folder: Path) -> Format:
    """Load the format of a step.

    Args:
        name: a built-in format, a YAML file, or ``auto``: the model's own, else ``rlt``, or ``rlt-shots`` for a model
            without a chat template.
        template: the model's chat template.
        model: name of the model, for the log.
        folder: the model's files, which may include a format.
    """
    if name == "auto" and (own := own_format(folder)):
        logger.info("%s comes with a format of its own, %s", model, own.name)
        return own
    chosen = name
    if name == "auto":
        chosen = "rlt-shots" if template.source == "plain" else "rlt"
    if template.source == "plain":
        logger.info("%s has no chat template; rlt-data's plain one is used, with the format %s", model, chosen)
    elif template.merges_system:
        logger.info("%s takes no system text; it goes to the head of the question", model)
    return load_format(chosen)
