"""Train a student on the best explanations, and measure what it learned.

Run: python examples/train_student_on_best.py  (10 seconds on a laptop; writes *.jsonl, runs/ and student/)
Needs: pip install 'rlt-data[train]'
"""

import rlt_data as rlt

rlt.make_countdown("train.jsonl", rows=16)
rlt.make_countdown("test.jsonl", rows=8, split="test")
run = rlt.generate("train.jsonl", teacher="nano", n=4, max_tokens=80)
run.score(student="nano").rank()
dataset = run.distill(select="best")

rlt.train_student(dataset, model="nano", out="student", epochs=2, batch_size=8, learning_rate=1e-4, progress=True)
for model in ("nano", "student"):
    result = rlt.evaluate("test.jsonl", model=model, benchmark="countdown", max_tokens=80)
    print(f"{model}: accuracy {result.accuracy:.2f} on {result.questions} problems (one run; noisy at this size)")
