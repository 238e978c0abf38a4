"""From a JSONL file of questions with solutions to a ranked data set.

Run: python examples/quickstart.py  (5 seconds on a laptop; writes questions.jsonl and runs/)
"""

import json
from pathlib import Path

import rlt_data as rlt

rows = [
    {"question": "Reach 24 with 3, 8. Use each number once.", "solution": "3 * 8 = 24"},
    {"question": "Reach 15 with 20, 5. Use each number once.", "solution": "20 - 5 = 15"},
]
Path("questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

run = rlt.generate("questions.jsonl", teacher="nano", n=8, max_tokens=80)  # eight explanations per question
run.score(student="nano")  # how much does each one help the student?
run.rank()
print(run.summary.table)  # mean reward by rank

dataset = run.distill(select="best")  # the best explanation of each question, for SFT
print(dataset[0]["messages"][-1]["content"])
print(f"{dataset.num_rows} rows in {run.summary.out}")
