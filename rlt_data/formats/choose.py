"""Choose the format of a step."""

from __future__ import annotations

import logging
from pathlib import Path

from rlt_data.formats.schema import Format, load_format, model_format
from rlt_data.formats.template import ChatTemplate

logger = logging.getLogger(__name__)


def find_format(name: str, template: ChatTemplate, folder: Path, student: ChatTemplate | None = None) -> Format:
    """Load the format of a step, as :func:`choose_format` does, without its notices."""
    if name != "auto":
        return load_format(name)
    default = "rlt-shots" if template.source == "plain" else "native" if student and student.reasoning else "rlt"
    return model_format(folder) or load_format(default)


def choose_format(
    name: str, template: ChatTemplate, model: str, folder: Path, student: ChatTemplate | None = None
) -> Format:
    """Load the format of a step.

    Args:
        name: a built-in format, a YAML file, or ``auto``: the format in the model's folder, else ``rlt-shots`` for a
            model without a chat template, else ``native`` for a student with reasoning markup, else ``rlt``.
        template: chat template of the model.
        model: name of the model, for the log.
        folder: folder of the model.
        student: chat template of the student, if it is known.
    """
    format = find_format(name, template, folder, student)
    if name == "auto" and model_format(folder):
        logger.info("%s includes the format %s, which is used", model, format.name)
    elif template.source == "plain":
        shown = format.name if name == "auto" else name
        logger.info("%s has no chat template; using rlt-data's plain template with the format %s", model, shown)
    elif template.merges_system:
        logger.info("the chat template of %s has no system role; the system text precedes the question", model)
    return format
