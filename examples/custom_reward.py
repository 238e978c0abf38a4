"""Replace the reward with your own function, named as module:function.

Run: python examples/custom_reward.py  (5 seconds on a laptop; writes problems.jsonl and runs/)
On the command line: rlt-data score ... --reward custom_reward:brief
"""

import sys
from pathlib import Path

import rlt_data as rlt


def brief(row):
    """Reward what helps the student, minus a cost per token; None rejects explanations that state no equation."""
    if "=" not in row["explanation"]:
        return None
    return row["r_ss"] - 0.01 * row["thought_tokens"]


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parent))  # so that custom_reward can be imported from any folder
    rlt.make_countdown("problems.jsonl", rows=4)
    traces = rlt.generate("problems.jsonl", teacher="nano", n=4, max_tokens=80)
    for reward in ("rlt", "custom_reward:brief"):  # rewards are never mixed, so each has its run
        run = traces.score(student="nano", reward=reward, out=f"runs/{reward.replace(':', '-')}").rank()
        best = run.scan().filter(rank=1).collect()
        print(f"{reward}: the best explanations have {best['thought_tokens'].mean():.0f} tokens")
