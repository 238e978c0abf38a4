"""Print the results of commands on stdout."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from rlt_data.errors import SOME_ROWS_FAILED, InputError
from rlt_data.progress import is_main_process
from rlt_data.settings import Settings
from rlt_data.steps.registry import Step

if TYPE_CHECKING:  # the steps' modules are imported when they run
    import polars as pl

    from rlt_data.inputs import CheckReport
    from rlt_data.publish.push import PushSummary
    from rlt_data.reporting.browse import TraceSelection
    from rlt_data.reporting.preview import Preview
    from rlt_data.reporting.report import ReportSummary
    from rlt_data.settings import (
        CheckSettings,
        CompareSettings,
        CountdownSettings,
        EvaluateSettings,
        FineTuneSettings,
        GenerateSettings,
        PolicySettings,
        PreviewSettings,
        PushSettings,
        ScoreSettings,
        ShowSettings,
    )
    from rlt_data.signals.funnel import FunnelStep
    from rlt_data.statistics import Stats
    from rlt_data.steps.compare import Comparison
    from rlt_data.steps.countdown import CountdownSummary
    from rlt_data.steps.curate import CurateSummary
    from rlt_data.steps.distill import DistillSummary
    from rlt_data.steps.dry_run import StepPlan
    from rlt_data.steps.evaluate import Evaluation
    from rlt_data.steps.merge import MergeSummary
    from rlt_data.steps.provenance import StepSummary
    from rlt_data.steps.rank import RankSummary
    from rlt_data.training.grpo import PolicySummary
    from rlt_data.training.memory import Memory
    from rlt_data.training.plan import Plan, PolicyPlan
    from rlt_data.training.sft import TrainingSummary


class _Console(Console):
    """A console that leaves the handling of a broken pipe to the command."""

    def on_broken_pipe(self) -> None:
        """Raise the error again; called while it is handled."""
        raise


#: Only the main process of a distributed training prints.
_console = _Console(highlight=False, soft_wrap=True, emoji=False, quiet=not is_main_process())

#: Score columns that ``show`` prints above a trace's text.
_SHOWN_TERMS = ("reward", "r_ss", "r_kl", "solution_logprob_mean", "kl_mean", "penalty", "thought_tokens")


#: Characters of a trace id that are printed; ``show`` finds a trace by them.
_SHORT_ID = 12

#: Characters of each text of a row that ``check`` prints.
SHOWN_CHARACTERS = 1000


def print_summary(step: Step, settings: Settings, summary: Any) -> int:
    """Print a step's summary with the function named in the registry, and return the exit code."""
    return globals()[step.output](settings, summary) or 0


def _print_rows(rows: str, settings: GenerateSettings | ScoreSettings, summary: StepSummary) -> int:
    if summary.plan:
        return _print_plan(rows, settings, summary.plan)
    rate = f", {summary.tokens / summary.seconds:,.0f} tokens/s" if summary.new and summary.seconds else ""
    _console.print(
        f"{summary.rows} {rows} ({summary.new} new) in {_plain(summary.run)}; {summary.failed} failed; "
        f"{summary.tokens:,} tokens in {summary.seconds:.1f} s{rate}"
    )
    return _failures(summary)


print_traces = partial(_print_rows, "traces")
print_scores = partial(_print_rows, "scores")


def _print_plan(rows: str, settings: GenerateSettings | ScoreSettings | EvaluateSettings, plan: StepPlan) -> int:
    """Print what a dry run found."""
    if settings.as_json:
        typer.echo(json.dumps(asdict(plan), indent=2))
        return 0
    _print_settings(settings)
    _console.print(
        f"{plan.questions:,} questions, {plan.rows:,} {rows}: {plan.done:,} done, {plan.new:,} to compute with "
        f"{plan.engine}, {plan.left_out:,} left out (failed, too long, or not retried)"
    )
    if rows == "scores":
        _console.print(f"{plan.tokens:,} tokens to score, {plan.tokens_read:,} to read")
    else:
        expected = (
            "" if plan.tokens_expected is None else f"; about {plan.tokens_expected:,.0f} by the run's mean length"
        )
        _console.print(f"{plan.tokens_read:,} tokens of prompts; at most {plan.tokens:,} tokens to sample{expected}")
    for model in plan.memory:
        _console.print(
            _plain(
                f"{model.model} in {model.dtype}: on each GPU about {model.weights_gib:.1f} GiB for weights, "
                f"{model.pass_gib:.1f} GiB for a forward pass, and {model.cache_gib:.2f} GiB for keys and values of a "
                f"text of {plan.longest:,} tokens"
            )
        )
    if plan.fits:
        _console.print("; ".join(map(_fit, plan.fits.items())))
    if plan.memory and plan.engine == "vllm" and plan.longest < plan.context:
        _console.print(
            f"vLLM starts only if a text of {plan.context:,} tokens fits; --max-model-len {plan.longest} is enough"
        )
    _print_time(settings, plan)
    return 0


def _fit(fit: tuple[int, int]) -> str:
    gib, texts = fit
    return (
        f"a GPU of {gib} GiB has room for {texts:,} such texts at a time"
        if texts
        else f"a GPU of {gib} GiB is too small"
    )


def _print_time(settings: GenerateSettings | ScoreSettings | EvaluateSettings, plan: StepPlan) -> None:
    rate = plan.tokens_per_second
    if rate is None or plan.seconds is None:
        _console.print(
            "time and cost: unknown, because this run has measured no rate; start it without --dry-run and interrupt "
            "it after a few minutes (finished rows are kept), or give --tokens-per-second"
        )
        return
    days, rest = divmod(round(plan.seconds), 86400)  # timedelta has a maximum
    time = (f"{days:,} day{'s' if days > 1 else ''}, " if days else "") + str(timedelta(seconds=rest))
    most = "at most " if plan.tokens_expected is None else "about "
    source = "measured by this run" if plan.rate_from == "run" else "by --tokens-per-second"
    _console.print(f"time: {most}{time} at {rate:{',.0f' if rate >= 10 else '.3g'}} tokens/s ({source})")
    if plan.cost is not None:
        _console.print(f"cost: {most}{plan.cost:,.2f} at {settings.gpu_price:g} per GPU and hour (GPUs: {plan.gpus:g})")
    elif settings.gpu_price is not None:
        _console.print("cost: unknown, because the number of GPUs is (of a server, or on a cluster without --engines)")


def _failures(summary: StepSummary | Evaluation) -> int:
    """Print why rows failed, and return the exit code."""
    if not summary.failed:
        return 0
    if summary.failure:
        _console.print(_plain(f"most frequent reason ({summary.failure_rows} of {summary.failed}): {summary.failure}"))
    errors = _plain(summary.run / "errors.jsonl")
    _console.print(f"all reasons are in {errors}; --retry-errors retries those rows")
    return SOME_ROWS_FAILED


def print_signals(_: Settings, summary: CurateSummary) -> None:
    """Print what each signal found."""
    _console.print(f"signals of {_plain(summary.run)}")
    for signal in summary.signals:
        state = f"{signal.new:,} new" if signal.new else "up to date"
        found = ", ".join(f"{finding}: {count:,}" for finding, count in signal.findings.items())
        _console.print(_plain(f"  {signal.name}: {signal.rows:,} rows ({state})" + (f"; {found}" if found else "")))
    for name, reason in summary.skipped.items():
        _console.print(_plain(f"  {name}: not computed, {reason}"))


def print_merge(_: Settings, summary: MergeSummary) -> None:
    """Print the counts of a merge."""
    rows = ", ".join(f"{count} {table}" for table, count in summary.rows.items() if count)
    _console.print(f"{rows or 'nothing'} from {summary.runs} runs merged into {_plain(summary.run)}")
    if summary.makers > 1:
        _console.print(f"  traces of {summary.makers} teachers, sampling settings or imports pooled")
    repeated = ", ".join(f"{count} {table}" for table, count in summary.repeated.items() if count)
    if repeated:
        _console.print(f"  duplicates kept once: {repeated}")
    differing = ", ".join(f"{count} {table}" for table, count in summary.differing.items() if count)
    if differing:
        _console.print(
            f"  duplicates with another origin, answer or other --keep columns: {differing}; the first run's are used"
        )
    if summary.failed:
        _console.print(f"  {summary.failed} rows failed in these runs; errors.jsonl lists them")
    if summary.rows["scores"]:
        _console.print("  rankings are not merged; run rlt-data rank")
    if summary.signals:
        _console.print(_plain(f"  signals are not merged ({', '.join(summary.signals)}); run rlt-data curate"))


def print_ranks(_: Settings, summary: RankSummary) -> None:
    """Print the buckets of a ranking."""
    _console.print(f"{summary.rows} traces of {summary.questions} questions ranked in {_plain(summary.run)}")
    _print_frame(summary.table)
    _print_funnel(summary.funnel)
    for note in summary.notes:
        typer.echo(f"note: {note}", err=True)
    _note_missing_traces(summary.missing_traces)


def _print_funnel(steps: Sequence[FunnelStep]) -> None:
    """Print what each condition dropped, with the beginnings of the ids of three traces."""
    import polars as pl

    rows = [
        {"condition": step.condition, "traces": step.rows_in, "left": step.rows_out,
         "questions left": step.questions_out, "null": step.unknown,
         "  dropped, for example": "  " + " ".join(key[:_SHORT_ID] for key in step.examples)}
        for step in steps
        if not step.note
    ]  # fmt: skip
    if rows:
        _print_frame(pl.DataFrame(rows) if any(row["null"] for row in rows) else pl.DataFrame(rows).drop("null"))
    for step in steps:
        if text := step.note or step.remark:
            _console.print(f"  {_plain(step.condition)}: {_plain(text)}")


def _note_missing_traces(count: int) -> None:
    if count:
        typer.echo(
            f"generate is unfinished, {count:,} traces are missing; to include them, run rlt-data generate again with "
            "the same settings, then rlt-data score and rlt-data rank",
            err=True,
        )


def print_dataset(_: Settings, summary: DistillSummary) -> None:
    """Print the counts of a distilled data set."""
    _console.print(
        f"{summary.rows} rows from {summary.questions} questions in {_plain(summary.out)} "
        f"(mean explanation: {summary.mean_thought_tokens:.0f} tokens)"
    )
    _print_funnel(summary.funnel)
    notes = {
        f"rows are held out as the split test, from {summary.held_out_questions} of the questions": summary.held_out,
        "questions whose best trace was too long and was replaced by another": summary.fallbacks,
    }
    for note, count in notes.items():
        if count:
            _console.print(f"  {count} {note}")
    _note_missing_traces(summary.missing_traces)


def print_push(settings: PushSettings, summary: PushSummary) -> None:
    """Print what was uploaded, or for a dry run what would be."""
    for branch in (summary, *summary.stages):
        _print_dry_push(branch) if settings.dry_run else _print_pushed(branch)
    if not settings.dry_run:
        _console.print(f"upload verified, in {summary.seconds:.1f} s")


def _print_dry_push(summary: PushSummary) -> None:
    plan = summary.plan
    _console.print(summary.card, markup=False)
    _rule(f"files on {summary.revision}")
    changes = {path: word for word in ("new", "changed", "unknown") for path in getattr(plan, word)}
    for path, size in summary.sizes.items():
        _console.print(f"{changes.get(path, 'same'):8} {size:>12,} {path}", markup=False)
    for path in plan.gone:
        _console.print(f"{'deleted':8} {'':>12} {path}", markup=False)


def _print_pushed(summary: PushSummary) -> None:
    plan, sizes = summary.plan, summary.sizes
    where = _plain(f"{summary.repo_id} ({summary.pull_request or summary.revision})")
    rows = "; rows: " + ", ".join(f"{name} {count:,}" for name, count in summary.rows.items()) if summary.rows else ""
    if summary.commit is None:
        _console.print(f"{where} is up to date at commit {summary.head}{rows}")
        return
    sent = sum(sizes[path] for path in (*plan.new, *plan.changed))
    _console.print(
        f"{where} at commit {summary.commit}: {len(plan.new)} new files, {len(plan.changed)} changed, "
        f"{len(plan.gone)} deleted, {len(plan.same)} unchanged ({sent:,} bytes uploaded){rows}"
    )


def print_evaluation(settings: EvaluateSettings, result: Evaluation) -> int:
    """Print the accuracy of a model on a benchmark, and return the exit code."""
    if result.plan:
        return _print_plan("answers", settings, result.plan)
    pass_at = ", ".join(f"pass@{k} {share:.1%}" for k, share in result.pass_at.items())
    lines = [
        f"{result.model} on {result.benchmark}: {result.answers} answers to {result.questions} questions "
        f"in {result.run}",
        f"accuracy {result.accuracy:.1%} (95 % interval {result.low:.1%} to {result.high:.1%})",
        f"{pass_at}; majority vote {result.majority:.1%}",
        f"in the student's format {result.formatted:.1%}, truncated {result.truncated:.1%}, "
        f"{result.mean_tokens:,.0f} tokens on average",
    ]
    if result.extended is not None and result.cut is not None:
        lines.append(
            f"budget forcing: extended {result.extended:.1%} of the thoughts, closed {result.cut:.1%} at the maximum"
        )
    if result.prompts:
        source = " ".join(filter(None, (result.prompts.source, result.prompts.version)))
        lines += [
            f"prompts of {source}: {result.prompts.question_template!r}",
            f"system text: {result.prompts.solver_system!r}",
        ]
    if result.ungraded:
        lines.append(f"{result.ungraded} answers on which the grader crashed or timed out count as wrong")
    if result.failed:
        lines.append(f"{result.failed} answers failed and are not counted")
    for line in lines:
        _console.print(_plain(line))
    return _failures(result)


def print_comparison(settings: CompareSettings, comparison: Comparison) -> None:
    """Print two evaluations on their common questions."""
    if settings.as_json:
        typer.echo(json.dumps(asdict(comparison), indent=2))
        return
    first, second, both = comparison.first, comparison.second, comparison.both
    _print_text(f"{comparison.benchmark}, {comparison.questions:,} common questions")
    for name, side in (("first", first), ("second", second)):
        _print_text(
            f"{name}: {side.model} in {side.run}, accuracy {side.accuracy:.1%} ({side.answers:g} answers per question)"
        )
    _print_text(
        f"second - first: {100 * comparison.difference:+.1f} points (95 % interval {100 * comparison.low:+.1f} to "
        f"{100 * comparison.high:+.1f}); McNemar's exact test p = {comparison.p_value:.3g}"
    )
    either = first.solved + second.solved - both
    overlap = "" if comparison.overlap is None else f" ({comparison.overlap:.1%} of those that at least one solves)"
    equally = "" if first.answers == second.answers else "; equally many of both count"
    _print_text(
        f"solved (more than half of the answers are correct{equally}): both {both:,}{overlap}, only the first "
        f"{first.solved - both:,}, only the second {second.solved - both:,}, neither {comparison.questions - either:,}"
    )
    if others := [f"{side.other_questions:,} only in {side.run}" for side in (first, second) if side.other_questions]:
        _print_text(f"left out: questions {' and '.join(others)}")
    if comparison.settings:
        _print_text(f"different settings: {comparison.settings}")


def print_training(settings: FineTuneSettings, summary: TrainingSummary) -> None:
    """Print the plan and the result of supervised training."""
    plan = summary.plan
    if settings.dry_run:
        _print_settings(settings)
    _console.print(
        f"{plan.rows:,} rows ({plan.left_out:,} left out as too long), {plan.tokens:,} tokens per epoch, "
        f"{plan.learned_tokens:,} of them in the loss, {plan.longest:,} tokens in the longest row"
    )
    _console.print(f"{plan.steps:,} steps on {_processes(plan)}; {plan.parameters / 1e6:,.1f} M parameters")
    _print_memory(plan.memory)
    if not settings.dry_run:
        loss = f", loss {summary.loss:.4f}" if summary.loss is not None else ""
        _console.print(_plain(f"{summary.steps} steps done{loss}; the model is in {summary.out}"))


def print_policy_training(settings: PolicySettings, summary: PolicySummary) -> None:
    """Print the plan and the result of GRPO training."""
    plan = summary.plan
    if settings.dry_run:
        _print_settings(settings)
    _console.print(
        f"{plan.questions:,} questions to train on ({plan.left_out:,} left out as too long), {plan.held_out:,} held "
        f"out, {plan.longest:,} tokens in the longest prompt"
    )
    _console.print(
        f"{plan.steps:,} steps of {plan.samples:,} samples on {_processes(plan)}; "
        f"each question is used {plan.epochs:.2f} times; at most {plan.tokens:,} tokens"
    )
    _console.print(f"{plan.parameters / 1e6:,.1f} M parameters")
    _print_memory(plan.memory)
    if not settings.dry_run:
        best = ""
        if summary.best:
            best = (
                f"; the best checkpoint (reward {summary.best_reward:.4f} on held-out questions) is in {summary.best}"
            )
        _console.print(
            _plain(f"{summary.steps} steps done, reward {summary.reward:.4f}; the model is in {summary.out}{best}")
        )


def _processes(plan: Plan | PolicyPlan) -> str:
    processes = "1 process" if plan.processes == 1 else f"{plan.processes:,} processes"
    return f"{processes}, {plan.accumulation:,} forward passes per process"


def _print_memory(machines: Sequence[Memory]) -> None:
    """Print the memory of each machine: a line for one, a table with verdicts for several."""
    if len(machines) > 1:
        import polars as pl

        rows = [*machines[0].parts, "total"]
        columns = {f"   {memory.machine}": [memory.gib(row) for row in rows] for memory in machines}
        _print_frame(pl.DataFrame({"GiB per GPU": rows, **columns}))
    for memory in machines:
        _console.print(_plain(memory.verdict))


def _print_settings(settings: Settings) -> None:
    for name, value in settings.model_dump(mode="json", by_alias=True).items():
        _console.print(_plain(f"{name}: {value}"))


def print_check(settings: CheckSettings, report: CheckReport) -> int:
    """Print how an input is read, its figures and its bad rows, and return the exit code."""
    if settings.as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        _print_check(report)
    return InputError.exit_code if report.bad or not report.good else 0


def _print_check(report: CheckReport) -> None:
    for notice in report.notices:
        _print_text(notice)
    _print_text(f"{report.source}: {report.rows} rows, {report.good} good, read as {report.preset or 'nothing'}")
    for name, origin in report.fields.items():
        column = f"{origin.column}: " if origin.column else ""
        _print_text(f"  {name:12}{column}{origin.rule}")
    if report.unused_columns:
        _print_text("unused columns: " + ", ".join(report.unused_columns))
    for name, longest in report.longest.items():
        _console.print(f"{name}: {report.mean[name]:,.0f} characters on average, {longest:,} at most")
    solutions = f" ({report.own_solutions} with their own solution)" if report.own_solutions else ""
    _console.print(
        f"{report.traces} traces{solutions}, {report.duplicates} duplicates (used once), "
        f"{report.repeated_questions} repeated questions with another solution"
    )
    if report.origins:
        _print_text(_origins(report.origins))
    if report.example:
        location, row = report.example
        for name in ("system", "question", "explanation", "completion", "solution", "answer"):
            if text := getattr(row, name):
                _rule(f"{name} of {location}")
                more = len(text) - SHOWN_CHARACTERS
                _print_text(text[:SHOWN_CHARACTERS] + (f" [... {more:,} more characters]" if more > 0 else ""))
        _rule("end of the example")
    for line in report.warnings:
        _print_text(f"warning: {line}")
    if report.bad:
        reasons = ", ".join(f"{count} {reason}" for reason, count in report.bad.most_common())
        _print_text(f"{sum(report.bad.values())} bad rows ({reasons}); the first are:")
        for position, reason in report.bad_rows:
            _print_text(f"  {position}: {reason}")


def print_preview(settings: PreviewSettings, preview: Preview) -> None:
    """Print what the models see: special tokens inverted, thought and solution coloured."""
    if settings.as_json:
        typer.echo(json.dumps(preview.as_dict(), indent=2))
        return
    if preview.problem:
        _print_text(f"this row cannot be used: {preview.problem}")
    for name in ("teacher_prompt", "served_prompt", "student_text", "solver_prompt"):
        if (content := getattr(preview, name)) is None:
            continue
        _rule(f"{name.replace('_', ' ')} (format {preview.format}, row {preview.source_id})")
        text = Text(printable(content))
        if name == "student_text":
            text.stylize("cyan", *preview.thought)
            text.stylize("green", *preview.solution)
        for span in preview.special[name]:
            text.stylize("reverse", *span)
        _console.print(text)
    (start, end), (first, last) = preview.thought, preview.solution
    _print_text(
        f"{len(preview.student_tokens):,} student tokens; scored: the thought (cyan, characters {start} to {end}) and "
        f"the solution (green, {first} to {last})"
    )


def print_problems(settings: CountdownSettings, summary: CountdownSummary) -> None:
    """Print the number of Countdown problems."""
    typer.echo(f"{summary.rows} problems of the {settings.split} split written to {summary.out}")


def print_question(question: dict[str, Any], traces: list[dict[str, Any]], signals: Sequence[str]) -> None:
    """Print a question, and traces with their scores and findings; ``signals`` are the columns of signals."""
    _rule(f"question {question['question_id']} (source {question['source_id']})")
    if question["question_meta"]:
        _print_text(question["question_meta"])
    _print_text(question["question"])
    solution = question.get("question_solution", question["solution"])
    if solution:
        _rule("solution")
        _print_text(solution)
    for trace in traces:
        rank = f"rank {trace['rank']} of {trace['traces']}, " if trace.get("rank") else ""
        end = trace["finish_reason"] or "unknown finish reason"
        _rule(f"{rank}trace {trace['trace_id'][:_SHORT_ID]}, sample {trace['sample_index']}, {end}")
        terms = [f"{name} {_figure(trace[name])}" for name in _SHOWN_TERMS if trace.get(name) is not None]
        if terms:
            _console.print(", ".join(terms))
        if found := [name for name in signals if isinstance(trace.get(name), (bool, str)) and trace[name] is not False]:
            _print_text("; ".join(name if trace[name] is True else f"{name}: {trace[name]}" for name in found))
        if trace["origin"]:
            _print_text(f"origin: {trace['origin']}")
        if trace["meta"]:
            _print_text(trace["meta"])
        _print_text(trace["completion"])
        if trace["solution"] not in (None, solution):
            _rule("solution of this trace")
            _print_text(trace["solution"])


def print_selected(settings: ShowSettings, selection: TraceSelection, signals: Sequence[str]) -> None:
    """Print selected traces, each with its question; ``signals`` are the columns of signals."""
    heading = str(selection.matching or f"{selection.count:,} traces")
    if selection.matching and settings.key:
        heading += f", {selection.count:,} of them in {settings.key}"
    if (count := len(selection.traces)) < selection.count:
        more = "" if settings.best or settings.worst else " (--best N or --worst N shows more)"
        heading += f"; showing {count:,}{more}"
    order = f", {'worst' if settings.worst else 'best'} {selection.order} first" if selection.order and count else ""
    _print_text(heading + order)
    for trace in selection.traces:
        print_question(trace, [trace], signals)


def print_stats(stats: Stats) -> None:
    """Print the figures of a run, or of some of its traces."""
    if stats.matching:
        _print_text(f"{stats.matching}; the figures are about these traces only")
    _console.print(", ".join(f"{count} {table}" for table, count in stats.rows.items()))
    if stats.finish_reasons:
        reasons = ", ".join(f"{reason} {count}" for reason, count in stats.finish_reasons.items())
        _console.print(f"finish reasons: {reasons}; {stats.completion_tokens:,} sampled tokens")
    if len(stats.by_origin) > 1:
        _print_frame(stats.by_origin)
    if rates := stats.tokens_per_second:
        _console.print(", ".join(f"{step} {rate:,.0f} tokens/s" for step, rate in rates.items()))
    if stats.failed:
        _console.print("failed: " + ", ".join(f"{count} in {step}" for step, count in stats.failed.items()))
    if stats.shares:
        shares = ", ".join(f"{flag.replace('_', ' ')} {share:.1%}" for flag, share in stats.shares.items())
        _console.print(f"scored traces: {shares}")
        _print_frame(stats.terms)
    if len(stats.buckets):
        _print_frame(stats.buckets)
    if stats.ranks_outdated:
        typer.echo("the ranks are older than the scores or signals, and not shown; run rlt-data rank again", err=True)


def print_report(summary: ReportSummary) -> None:
    """Print the size and the content of a report page."""
    for matching in summary.matching.values():
        _print_text(f"{matching}; the page is about these traces only")
    traces = f"all {summary.traces:,} traces"
    if summary.traces < summary.all_traces:
        traces = f"{summary.traces:,} of {summary.all_traces:,} traces (--limit)"
    _console.print(
        f"{_plain(summary.out)}: {traces} of {summary.questions:,} questions, {summary.size / 2**20:.1f} MiB, in "
        f"{summary.seconds:.1f} s"
    )
    if not summary.per_token:
        _console.print("  to colour explanations token by token, score with --per-token")


def printable(text: str) -> str:
    """Replace control characters in text from models and files, so that it cannot control the terminal."""
    return "".join(char if _is_visible(char) else "\ufffd" for char in text.replace("\r\n", "\n"))


def _is_visible(char: str) -> bool:
    return char.isprintable() or char in "\n\t" or unicodedata.category(char) == "Zs"


def _plain(value: object) -> str:
    """Return a value as text without terminal control characters or rich markup."""
    return escape(printable(str(value)))


def _print_text(text: str) -> None:
    typer.echo(printable(text))


def _print_frame(frame: pl.DataFrame) -> None:
    import polars as pl

    table = Table(box=box.SIMPLE, show_edge=False, padding=0)
    for name, dtype in frame.schema.items():
        table.add_column(name.replace("_", " "), justify="left" if dtype == pl.String else "right")
    for row in frame.iter_rows():
        table.add_row(*(_plain(_cell(_figure(value))) for value in row))
    # The terminal wraps a table that is too wide; rich would truncate its figures.
    table.width = Measurement.get(_console, _console.options.update(max_width=10_000), table).maximum
    _console.print(table, crop=False)


def _origins(traces: Mapping[str, int]) -> str:
    """Return a line with the number of traces by origin, the most frequent first."""
    return "origins of the traces: " + ", ".join(f"{origin} {count}" for origin, count in Counter(traces).most_common())


def _figure(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    """Return a text on one line of at most 100 characters, because conditions and names of origins have any length."""
    line = text.replace("\n", " ")
    return line if len(line) <= 100 else line[:97] + "..."


def _rule(title: str) -> None:
    _console.print(f"[bold]--- {_plain(title)}[/bold]")
