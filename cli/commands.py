"""The commands that are not steps: they run a pipeline, look at a run, or print a format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from rlt_data.cli.output import (
    print_comparison,
    print_question,
    print_report,
    print_selected,
    print_stats,
    print_summary,
)
from rlt_data.progress import choose_progress
from rlt_data.settings import (
    CompareSettings,
    FormatsSettings,
    ReportSettings,
    RunPipelineSettings,
    Settings,
    ShowSettings,
    StatsSettings,
    ViewSettings,
)
from rlt_data.steps.registry import STEPS

#: Traces that ``show --where`` prints without --best or --worst.
SHOWN_TRACES = 10


def run(settings: RunPipelineSettings) -> int:
    """Run a pipeline from one YAML file, whose keys are the commands' flags."""
    from rlt_data.steps.pipeline import load_pipeline, run_pipeline

    code = 0
    for name, section, summary in run_pipeline(load_pipeline(settings.pipeline), choose_progress(True)):
        code = max(code, print_summary(STEPS[name], section, summary))
    return code


def show(settings: ShowSettings) -> None:
    """Print a question and its traces with their scores, or the best or worst traces of the run."""
    from rlt_data.reporting.browse import find, select
    from rlt_data.storage.run import RunFolder

    run = RunFolder.existing(settings.input)
    signals = [name for signal in run.signals.values() for name in signal["columns"]]
    if settings.best or settings.worst or settings.where:
        selection = select(
            run,
            settings.key,
            where=settings.where,
            limit=settings.best or settings.worst or SHOWN_TRACES,
            worst_first=settings.worst is not None,
        )
        print_selected(settings, selection, signals)
        return
    shown = find(run, settings.key)
    traces = shown.traces
    print_question(shown.question, [traces[0], traces[-1]] if settings.ends and len(traces) > 1 else traces, signals)
    if settings.key is None:
        count = run.count("questions")
        typer.echo(
            f"question 1 of {count:,}; name another by KEY, or select traces with --best, --worst or --where", err=True
        )


def stats(settings: StatsSettings) -> None:
    """Print the figures of a run: rows, lengths, shares, and the distribution of each reward term."""
    from rlt_data.signals.matching import find_matching
    from rlt_data.statistics import stats
    from rlt_data.storage.run import RunFolder

    run = RunFolder.existing(settings.input)
    print_stats(stats(run, matching=find_matching(run, settings.where)))


def compare(settings: CompareSettings) -> None:
    """Compare two evaluations question by question: difference with interval, McNemar's test, and overlap."""
    from rlt_data.steps.compare import compare

    print_comparison(settings, compare(settings))


def report(settings: ReportSettings) -> None:
    """Write an HTML page about a run: figures, plots, and the traces, coloured token by token."""
    from rlt_data.reporting.report import report

    print_report(report(settings, choose_progress(True)))


def view(settings: ViewSettings) -> None:
    """Show a run in the browser while it is computed: progress, throughput, time left, and its report."""
    import webbrowser

    from rlt_data.reporting.serve import serve

    def started(address: str) -> None:
        typer.echo(f"{address} shows {settings.input} until Ctrl-C")
        if settings.open:
            webbrowser.open(address)

    try:
        serve(settings.input, settings.limit, settings.port, started)
    except KeyboardInterrupt:
        pass  # the usual way to stop it


def formats(settings: FormatsSettings) -> None:
    """List the built-in prompt formats, or print one as YAML to edit."""
    import yaml

    from rlt_data.formats import BUILT_IN, load_format

    if settings.name is None:
        typer.echo("\n".join(BUILT_IN))
    else:
        content = load_format(settings.name).model_dump(mode="json")
        typer.echo(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100), nl=False)


#: Settings and function of each command; the function's docstring is its help.
COMMANDS: dict[str, tuple[type[Settings], Callable[[Any], int | None]]] = {
    "run": (RunPipelineSettings, run),
    "show": (ShowSettings, show),
    "stats": (StatsSettings, stats),
    "report": (ReportSettings, report),
    "view": (ViewSettings, view),
    "compare": (CompareSettings, compare),
    "formats": (FormatsSettings, formats),
}
