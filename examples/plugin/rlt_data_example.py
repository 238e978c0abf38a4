"""Extend rlt-data without a fork: pip install this folder, then use the four names on the command line.

rlt-data generate --in faq.jsonl --preset faq --engine oracle --teacher nano --out run
rlt-data score --in run --student nano --teacher none --reward brief
rlt-data rank --in run && rlt-data distill --in run --shape alpaca
"""

import re

import numpy as np

from rlt_data.engines import Engine, Heartbeat, Sample


def faq(record):
    """Read records with the columns Q and A."""
    return {"question": record["Q"], "solution": record["A"]}


def brief(row):
    """Reward what helps the student, minus a cost per token of the explanation."""
    return row["r_ss"] - 0.01 * row["thought_tokens"]


def alpaca(row):
    """Return the columns of Alpaca."""
    return {"instruction": row["question"], "input": "", "output": row["message"]}


class Oracle(Engine):
    """Answers each prompt with the solution, its last text between tags, so that tests need no model."""

    def __init__(self, model):
        self.tokenizer, self.context_length, self.heartbeat = model.tokenizer, model.context_length, Heartbeat()

    def generate(self, blocks, sampling):
        for prompt in (prompt for block in blocks for prompt in block):
            text = re.findall(r">\s*([^<>\s][^<>]*?)\s*<", self.tokenizer.decode(prompt.ids))[-1] + sampling.stop
            ids = np.asarray(self.tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)
            for sample in prompt.samples:
                if sample.emit:
                    yield Sample(sample.key, text, ids, None, None, "stop", len(prompt.ids), len(ids))


def open_oracle(model, logs, memory_share):
    """Open the engine for a model that rlt-data has found."""
    return Oracle(model)
