"""Lower bound of scoring time: counted floating-point operations and bytes, compared with the peak of a GPU.

    python -m benchmarks.limits [--questions 17000] [--traces 16] [--tokens 4096] [--prompt 400]

Nothing is measured. Architectures come from published configurations (Qwen2.5 on the Hub), and the GPU is an H100 SXM
according to its data sheet: 989 TFLOP/s in dense bfloat16, 3.35 TB/s, 80 GB.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from benchmarks.report import print_table, save

FLOPS, BYTES_PER_SECOND = 989e12, 3.35e12
BATCH_TOKENS = 2048
#: Bytes per vocabulary entry for the log-prob of a prompt token in vLLM's first model runner: logits in bfloat16 and
#: log-softmax in float32.
LOGIT_BYTES = 2 + 4


@dataclass(frozen=True)
class Student:
    """Decoder with gated feed-forward layers; sizes from its config.json."""

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
        """Weights that are multiplied with every token, without the LM head."""
        attention = self.hidden * self.head_size * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.feed_forward)

    @property
    def head_parameters(self) -> int:
        return self.hidden * self.vocabulary

    def flop(self, tokens: int, first: int, scored: int) -> float:
        """Operations of a causal forward pass over positions ``first`` to ``tokens`` of a text."""
        new = tokens - first
        context = (tokens * (tokens + 1) - first * (first + 1)) / 2  # pairs of a token and one it attends to
        attention = 4 * self.layers * self.heads * self.head_size * context
        return 2 * self.layer_parameters * new + 2 * self.head_parameters * scored + attention

    @property
    def cache_bytes(self) -> int:
        """Bytes of a token's keys and values in bfloat16."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_size


STUDENTS = (
    Student("Qwen2.5-7B", 3584, 28, 28, 4, 128, 18944, 152064),
    Student("Qwen2.5-32B", 5120, 64, 40, 8, 128, 27648, 152064),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=17_000)
    parser.add_argument("--traces", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of a student's complete text")
    parser.add_argument("--prompt", type=int, default=400, help="tokens shared by all traces of a question")
    arguments = parser.parse_args()
    rows = [row for student in STUDENTS for row in _rows(student, arguments)]
    print_table(rows)
    save("limits", {"settings": vars(arguments), "rows": rows})


def _rows(student: Student, arguments: argparse.Namespace) -> list[dict[str, object]]:
    traces, scored = arguments.questions * arguments.traces, arguments.tokens - arguments.prompt
    weights = 2 * (student.layer_parameters + 2 * student.head_parameters)
    rows = []
    for engine, shared in (("vllm: every text whole", False), ("transformers: prompts once", True)):
        text_flop = traces * student.flop(arguments.tokens, arguments.prompt if shared else 0, scored)
        flop = text_flop + (arguments.questions * student.flop(arguments.prompt, 0, 0) if shared else 0)
        batch = BATCH_TOKENS * flop / (traces * arguments.tokens) / FLOPS
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
                "keys and values, GB a text": arguments.tokens * student.cache_bytes / 1e9,
                "logits, GB a batch": 0.0 if shared else BATCH_TOKENS * student.vocabulary * LOGIT_BYTES / 1e9,
            }
        )
    return rows


if __name__ == "__main__":
    main()
