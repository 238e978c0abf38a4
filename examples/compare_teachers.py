"""Compare two teachers on the same questions by how much their explanations help one student.

Run: python examples/compare_teachers.py  (5 seconds on a laptop; writes problems.jsonl and runs/)
"""

import polars as pl

import rlt_data as rlt

rlt.make_countdown("problems.jsonl", rows=8)
frames = []
for teacher in ("nano-teacher", "nano-teacher-warm"):
    run = rlt.generate("problems.jsonl", teacher=teacher, n=4, max_tokens=80)
    run.score(student="nano")
    frames.append(run.scan().with_columns(pl.lit(teacher).alias("model")).collect())

traces = pl.concat(frames)
figures = [pl.col(name).mean() for name in ("reward", "r_ss", "r_kl", "thought_tokens", "well_formed")]
print(traces.group_by("model").agg(figures).sort("reward", descending=True))

# Any column can rank: here the shortest well-formed explanation of each question.
shortest = traces.filter("well_formed").sort("thought_tokens").group_by("question_id", maintain_order=True).first()
print(shortest.select("question", "model", "thought_tokens", "reward"))
