"""What scoring costs at the least: counted floating-point operations and bytes of a student, against what a GPU can do.

    python -m benchmarks.limits [--questions 17000] [--traces 16] [--tokens 4096] [--prompt 400]

Nothing is measured here. Architectures are those of the published configurations (Qwen2.5 on the Hub), the GPU is an
H100 SXM by its data sheet: 989 TFLOP/s in dense bfloat16, 3.35 TB/s, 80 GB.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from benchmarks.report import print_table, save

FLOPS, BYTES_PER_SECOND = 989e12, 3.35e12
BATCH_TOKENS = 2048
#: Bytes that a log-prob of a prompt token costs in vLLM's first model runner for each entry of the vocabulary: logits
#: in bfloat16 and log-softmax in float32.
LOGIT_BYTES = 2 + 4


@dataclass(frozen=True)
class Student:
    """A decoder with gated feed-forward layers; sizes as in its config.json."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    feed_forward: int
    vocabulary: int

    @property
    def layer_parameters(self) -> int:
        """Weights that every token is multiplied with, the head left out."""
        attention = self.hidden * self.head_size * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.feed_forward)

    @property
    def head_parameters(self) -> int:
        return self.hidden * self.vocabulary

    def flop(self, tokens: int, first: int, scored: int) -> float:
        """Operations of a forward pass over the tokens from ``first`` on of a text of ``tokens``, causal attention."""
        new = tokens - first
        context = (tokens * (tokens + 1) - first * (first + 1)) / 2  # pairs of a token and one that it sees
        attention = 4 * self.layers * self.heads * self.head_size * context
        return 2 * self.layer_parameters * new + 2 * self.head_parameters * scored + attention

    @property
    def cache_bytes(self) -> int:
        """Keys and values of a token in bfloat16."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_size


STUDENTS = (
    Student("Qwen2.5-7B", 3584, 28, 28, 4, 128, 18944, 152064),
    Student("Qwen2.5-32B", 5120, 64, 40, 8, 128, 27648, 152064),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=17_000)
    parser.add_argument("--traces", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=4096, help="of a student's whole text")
    parser.add_argument("--prompt", type=int, default=400, help="of them shared by the traces of a question")
    arguments = parser.parse_args()
    rows = [row for student in STUDENTS for row in _rows(student, arguments)]
    print_table(rows)
    save("limits", {"settings": vars(arguments), "rows": rows})


def _rows(student: Student, how: argparse.Namespace) -> list[dict[str, object]]:
    traces, scored = how.questions * how.traces, how.tokens - how.prompt
    weights = 2 * (student.layer_parameters + 2 * student.head_parameters)
    rows = []
    for engine, shared in (("vllm: every text whole", False), ("transformers: prompts once", True)):
        rests = traces * student.flop(how.tokens, how.prompt if shared else 0, scored)
        flop = rests + (how.questions * student.flop(how.prompt, 0, 0) if shared else 0)
        batch = BATCH_TOKENS * flop / (traces * how.tokens) / FLOPS
        rows.append(
            {
                "student": student.name,
                "engine": engine,
                "EFLOP": flop / 1e18,
                "H100 hours at the limit": flop / FLOPS / 3600,
                "at half of it": 2 * flop / FLOPS / 3600,
                "weights, GB": weights / 1e9,
                "reading them, ms a batch": 1e3 * weights / BYTES_PER_SECOND,
                "computing, ms a batch": 1e3 * batch,
                "keys and values, GB a text": how.tokens * student.cache_bytes / 1e9,
                "logits, GB a batch": 0.0 if shared else BATCH_TOKENS * student.vocabulary * LOGIT_BYTES / 1e9,
            }
        )
    return rows


if __name__ == "__main__":
    main()
