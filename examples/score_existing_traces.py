"""Score explanations that other models or people wrote, without generating any.

Run: python examples/score_existing_traces.py  (3 seconds on a laptop; writes runs/)
"""

import rlt_data as rlt

question, solution = "Reach 24 with 3, 8. Use each number once.", "3 * 8 = 24"
traces = [
    {"question": question, "solution": solution, "explanation": "3 * 8 = 24", "model": "good"},
    {"question": question, "solution": solution, "explanation": "8 - 3 = 5", "model": "off target"},
    {"question": question, "solution": solution, "explanation": "3 * 3 * 3 * 3 * 3", "model": "nonsense"},
]
# The teacher's log-probs are unknown, so a checkpoint computes them.
run = rlt.score(traces, keep=["model"], student="nano", teacher="nano", out="runs/existing")
run.rank()
print(run.scan().select("rank", "meta", "reward", "r_ss", "r_kl").sort("rank").collect())
