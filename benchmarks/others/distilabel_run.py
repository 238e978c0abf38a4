"""Time distilabel, in its own environment, with a model that responds immediately."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from distilabel.models import LLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration

TEXT = "We look at what is asked, write down what we know, and take one small step after the other. " * 5


class Instant(LLM):
    @property
    def model_name(self) -> str:
        return "instant"

    def generate(self, inputs: list[Any], num_generations: int = 1) -> list[Any]:
        counts = {"input_tokens": [50] * num_generations, "output_tokens": [100] * num_generations}
        return [{"generations": [TEXT] * num_generations, "statistics": counts} for _ in inputs]


if __name__ == "__main__":
    questions, traces, _, folder = sys.argv[1:]
    rows = [json.loads(line) for line in Path(questions).read_text().splitlines()]
    data = [{"instruction": f"{row['question']}\n{row['solution']}"} for row in rows]
    with Pipeline(name="overhead") as pipeline:
        load = LoadDataFromDicts(data=data, batch_size=50)
        load >> TextGeneration(llm=Instant(), num_generations=int(traces), input_batch_size=50)
    start_time = time.perf_counter()
    result = pipeline.run(use_cache=False)
    seconds = time.perf_counter() - start_time
    assert len(result["default"]["train"]) == len(rows) * int(traces)
    (Path(folder) / "seconds.json").write_text(json.dumps(seconds))
