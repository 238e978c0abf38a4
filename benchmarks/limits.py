"""Lower bound of scoring time: counted floating-point operations and bytes, compared with the peak of a GPU.

    python -m benchmarks.limits [--questions 17000] [--traces 16] [--tokens 4096] [--prompt 400]

Nothing is measured. Architectures come from published configurations (Qwen2.5 on the Hub), and the GPU is an H100 SXM
according to its data sheet: 989 TFLOP/s in dense bfloat16, 3.35 TB/s, 80 GB.
"""

from __future__ import annotations

import argparse

from benchmarks.operations import Decoder
from benchmarks.report import print_table, save

FLOPS, BYTES_PER_SECOND = 989e12, 3.35e12
BATCH_TOKENS = 2048
#: Bytes per vocabulary entry for the log-prob of a prompt token in vLLM's first model runner: logits in bfloat16 and
#: log-softmax in float32.
LOGIT_BYTES = 2 + 4


#: From the models' config.json files.
STUDENTS = {
    "Qwen2.5-7B": Decoder(3584, 28, 4, 128, 18944, 152064, windows=(None,) * 28),
    "Qwen2.5-32B": Decoder(5120, 40, 8, 128, 27648, 152064, windows=(None,) * 64),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=17_000)
    parser.add_argument("--traces", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of a student's complete text")
    parser.add_argument("--prompt", type=int, default=400, help="tokens shared by all traces of a question")
    arguments = parser.parse_args()
    rows = [row for name, student in STUDENTS.items() for row in _rows(name, student, arguments)]
    print_table(rows)
    save("limits", {"settings": vars(arguments), "rows": rows})


def _rows(name: str, student: Decoder, arguments: argparse.Namespace) -> list[dict[str, object]]:
    traces, scored = arguments.questions * arguments.traces, arguments.tokens - arguments.prompt
    weights = 2 * (student.layer_parameters + 2 * student.head_parameters)
    rows = []
    for engine, shared in (("vllm: every text whole", False), ("transformers: prompts once", True)):
        text_flop = traces * student.operations(arguments.tokens, arguments.prompt if shared else 0, scored)
        flop = text_flop + (arguments.questions * student.operations(arguments.prompt, 0, 0) if shared else 0)
        batch = BATCH_TOKENS * flop / (traces * arguments.tokens) / FLOPS
        rows.append(
            {
                "student": name,
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
