"""Tokens, time and cost of the pipeline on three machines: one 24 GB GPU, one 80 GB GPU, and eight of them.

    python -m benchmarks.scaling [--questions 17000] [--traces 16] [--question 400] [--solution 400] [--trace 3296]
    python -m benchmarks.scaling --rate generate:24=900 --rate score:80=25000   # tokens per second of one GPU

Nothing is measured here. The rate of a stage is the one given by ``--rate``; ``rlt-data stats`` prints those of
generate, score and evaluate for a run on one such GPU. Without it, it is a share (``--efficiency``,
``--training-efficiency``) of what the GPU's data sheet allows; that share is an assumption. Teacher and student have
the shape of Qwen2.5-7B, in bfloat16:

- generate: each decoding step reads all weights and the keys and values of all running samples, and computes one token
  of each. As many samples run as fit in 90 % of the memory, at half of their length on average.
- score: operations of the student's complete texts. The teacher's log-probs are stored with the traces.
- train-student: three epochs on the best trace of each question; operations of a forward pass, of its repetition
  (activation checkpointing), and of the backward pass, which has as many for the activations and, in full fine-tuning,
  as many again for the weights. LoRA where weights, gradients and optimizer (16 bytes per parameter) do not fit.
- evaluate: samples for AIME24, as for generate.

Eight GPUs count as eight times one. Ranking and distilling need no GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, nan

from benchmarks.limits import BYTES_PER_SECOND, FLOPS, STUDENTS
from benchmarks.operations import Decoder
from benchmarks.report import markdown, save

MODEL = STUDENTS["Qwen2.5-7B"]
EPOCHS = 3
#: Share of a GPU's memory that is used, and bytes of it that are neither weights nor keys and values.
MEMORY_SHARE, OTHER_BYTES = 0.9, 2e9
#: Bytes per parameter of weights, gradients and AdamW's moments in float32.
FULL_BYTES = 16


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet.

    Attributes:
        gigabytes: size of its memory.
        flops: operations per second in dense bfloat16.
        bytes_per_second: memory bandwidth.
        price: dollars per hour; an assumption.
    """

    name: str
    gigabytes: int
    flops: float
    bytes_per_second: float
    price: float


RTX_4090 = Gpu("RTX 4090", 24, 165e12, 1008e9, 0.50)
H100 = Gpu("H100", 80, FLOPS, BYTES_PER_SECOND, 2.50)
MACHINES = ((1, RTX_4090), (1, H100), (8, H100))
#: Keys of ``--rate``.
_RATED = tuple(
    f"{stage}:{gpu.gigabytes}"
    for stage in ("generate", "score", "train-student", "evaluate")
    for gpu in (RTX_4090, H100)
)


@dataclass(frozen=True)
class Stage:
    """Work of a stage.

    Attributes:
        tokens: tokens sampled, scored or trained on, in the unit of the rate.
        limit: tokens per second that one GPU could reach.
        efficiency: share of the limit that is assumed.
        note: how the stage runs.
    """

    name: str
    tokens: int
    limit: float
    efficiency: float
    note: str = ""


def parameters(model: Decoder) -> int:
    """Return the number of weights, with separate embeddings and LM head."""
    return model.layer_parameters + 2 * model.head_parameters


def decoding_limit(
    gpu: Gpu, model: Decoder, prompt: int, text: int, memory_share: float = MEMORY_SHARE
) -> tuple[float, int]:
    """Return the tokens per second of decoding, and the number of samples that run at a time."""
    mean, weights = prompt + text // 2, 2 * parameters(model)
    samples = max(int((memory_share * gpu.gigabytes * 1e9 - weights - OTHER_BYTES) / (mean * model.cache_bytes)), 0)
    reading = (weights + samples * mean * model.cache_bytes) / gpu.bytes_per_second
    computing = samples * model.operations(mean, mean - 1, 1) / gpu.flops
    return samples / max(reading, computing), samples


def stages(machine: tuple[int, Gpu], options: argparse.Namespace) -> Iterator[Stage]:
    """Yield the stages of the pipeline on a machine."""
    count, gpu = machine
    traces = options.questions * options.traces
    limit, samples = decoding_limit(gpu, MODEL, options.question + options.solution, options.trace)
    yield Stage("generate", traces * options.trace, limit, options.efficiency, f"{samples} samples at a time")
    scored = options.trace + options.solution
    text = options.question + scored
    operations = MODEL.operations(text, 0, scored)
    yield Stage("score", traces * scored, gpu.flops * scored / operations, options.efficiency)
    full = FULL_BYTES * parameters(MODEL) / count < MEMORY_SHARE * gpu.gigabytes * 1e9
    passes = 4 if full else 3
    yield Stage(
        "train-student",
        EPOCHS * options.questions * text,
        gpu.flops * text / (passes * operations),
        options.training_efficiency,
        "all weights" if full else "LoRA",
    )
    limit, samples = decoding_limit(gpu, MODEL, options.question, options.answer)
    yield Stage("evaluate", options.answers * options.answer, limit, options.efficiency, f"{samples} samples at a time")


def rows(options: argparse.Namespace) -> list[dict[str, object]]:
    """Return the table: one row per stage and machine."""
    rates = dict(options.rate)
    table: list[dict[str, object]] = []
    for machine in MACHINES:
        count, gpu = machine
        hours, cost = 0.0, 0.0
        for stage in stages(machine, options):
            measured = rates.get(f"{stage.name}:{gpu.gigabytes}")
            rate = count * (measured or stage.efficiency * stage.limit)
            seconds = stage.tokens / rate if rate else inf  # no sample fits
            dollars = count * seconds / 3600 * gpu.price
            hours, cost = hours + seconds / 3600, cost + dollars
            source = "measured" if measured else f"{stage.efficiency:.0%} of the limit"
            table.append(_row(machine, stage.name, seconds, dollars, stage.note, stage.tokens, rate, source))
        table.append(_row(machine, "all", 3600 * hours, cost))
    return table


def _row(
    machine: tuple[int, Gpu],
    stage: str,
    seconds: float,
    dollars: float,
    note: str = "",
    tokens: int | None = None,
    rate: float | None = None,
    source: str = "",
) -> dict[str, object]:
    count, gpu = machine
    return {
        "machine": f"{count} x {gpu.gigabytes} GB ({gpu.name})",
        "stage": stage,
        "million tokens": "" if tokens is None else f"{tokens / 1e6:,.0f}",
        "tokens/s": "" if rate is None else f"{rate:,.0f}",
        "rate": source,
        "seconds": f"{seconds:,.0f}",
        "hours": f"{seconds / 3600:,.1f}",
        "$": f"{dollars:,.0f}",
        "notes": note,
    }


def _rate(text: str) -> tuple[str, float]:
    key, _, rate = text.partition("=")
    try:
        value = float(rate)
    except ValueError:
        value = nan
    if key not in _RATED or not 0 < value < inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not STAGE:GIGABYTES=NUMBER, with one of {', '.join(_RATED)}")
    return key, value


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=17_000)
    parser.add_argument("--traces", type=int, default=16, help="traces per question")
    parser.add_argument("--question", type=int, default=400, help="tokens of a question")
    parser.add_argument("--solution", type=int, default=400, help="tokens of a solution")
    parser.add_argument("--trace", type=int, default=3296, help="tokens of a trace")
    parser.add_argument("--answers", type=int, default=30 * 64, help="samples of the evaluation")
    parser.add_argument("--answer", type=int, default=8000, help="tokens of a sample of the evaluation")
    parser.add_argument("--efficiency", type=float, default=0.5, help="assumed share of the limit")
    parser.add_argument("--training-efficiency", type=float, default=0.4, help="the same for training")
    parser.add_argument(
        "--rate",
        action="append",
        default=[],
        type=_rate,
        metavar="STAGE:GIGABYTES=TOKENS_PER_SECOND",
        help=f"measured rate of one GPU, such as {_RATED[0]}=1000",
    )
    return parser


def main() -> None:
    options = parser().parse_args()
    table = rows(options)
    print(markdown(table), end="")
    save("scaling", {"settings": vars(options), "rows": table})


if __name__ == "__main__":
    main()
