"""Score explanations that other models or people wrote; nothing is generated.

Run: python examples/score_existing_traces.py  (5 seconds on a laptop; writes runs/)
"""

import rlt_data as rlt

problem = {
    "question": "Combine the numbers 4, 6 and 9 with +, -, * and / to reach 30. Use every number exactly once; "
    "brackets are allowed. Answer with one expression.",
    "solution": "(9 - 4) * 6",
}
explanations = {
    "solves it": "9 - 4 = 5 5 * 6 = 30 yes",
    "gives up": "4 + 6 = 10 10 + 9 = 19 no",
    "another problem": "7 * 8 = 56 56 - 2 = 54 yes",
}
traces = [{**problem, "explanation": text, "author": author} for author, text in explanations.items()]

# These traces have no stored log-probs of their teacher, so a teacher checkpoint computes them.
run = rlt.score(traces, origin_column="author", student="nano", teacher="nano", out="runs/existing-traces").rank()
print(run.scan().select("rank", "origin", "reward", "r_ss", "r_kl").sort("rank").collect())
