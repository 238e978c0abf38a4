"""From your own JSONL file of questions with solutions to a ranked data set.

Run: python examples/quickstart.py  (5 seconds on a laptop; writes runs/)
The nano models are miniatures that know Countdown problems only. For other questions, pass real models.
"""

from pathlib import Path

import rlt_data as rlt

questions = Path(__file__).with_name("questions.jsonl")  # columns: question, solution

run = rlt.generate(questions, teacher="nano", n=8, max_tokens=80)  # eight explanations per question
run.score(student="nano")  # how much does each one help the student?
run.rank()
print(run.summary.table)  # mean reward by rank

dataset = run.distill(select="best")  # the best explanation of each question, ready for SFT
print(dataset[0]["messages"][-1]["content"])
print(f"{dataset.num_rows} rows in {run.summary.out}")
