"""Settings of ``curate``."""

from __future__ import annotations

from rlt_data.settings.base import INPUT, Texts, field
from rlt_data.settings.inputs import FormatSettings, RunOrFilesSettings


class CurateSettings(RunOrFilesSettings, FormatSettings):
    """Settings of :func:`rlt_data.steps.curate`; ``input`` is a run or a file of traces."""

    first_flags = ("signals", "against", "evaluation", "reviews", "out")

    out: str | None = field(
        None, INPUT, "Run folder or URL to which the traces of files are added. Required for files.", affects="output"
    )
    format: str = field(
        "auto",
        INPUT,
        "Prompt format in which the traces of files are stored: rlt, rlt-shots, think, native, or a YAML file. auto: "
        "that of the traces in --out, else rlt.",
        affects="rows",
        by_content=True,
    )
    signals: Texts = field(
        (),
        None,
        "Signal to compute: a built-in one, a plug-in's, module:function, or a YAML file of expressions; repeatable. "
        "Default: text, leak, answer and duplicates; with --against, --evaluation and --reviews also contamination, "
        "pass_rate and review.",
        affects="rows",
    )
    against: Texts = field(
        (),
        None,
        "File of questions, or benchmark of rlt-data evaluate, to find in the data, for the signal contamination; "
        "repeatable.",
        affects="rows",
        by_content=True,
    )
    evaluation: str | None = field(
        None,
        INPUT,
        "Run of rlt-data evaluate on the same questions, for the signal pass_rate.",
        affects="rows",
        by_content=True,
    )
    reviews: str | None = field(
        None,
        INPUT,
        "File with the columns trace_id and review, for the signal review.",
        affects="rows",
        by_content=True,
    )
    max_repetition: float = field(
        0.2, None, "An explanation with a larger repetition repeats.", affects="rows", gt=0, le=1
    )
    max_leak: float = field(0.5, None, "An explanation with a larger leak_share leaks.", affects="rows", gt=0, le=1)
    similarity: float = field(0.7, None, "Minimum Jaccard similarity of near duplicates.", affects="rows", gt=0, le=1)
