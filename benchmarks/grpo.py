"""Time of a GRPO step with the dense reward, compared with a free reward in rlt-data's trainer and in TRL's.

All arms train the miniature teacher with the same questions, group sizes, lengths and update. The free reward depends
on the sample's length, so that advantages are not zero. TRL's trainer samples with Transformers' ``generate``; its copy
of the model stops at the closing tag, so that both sample the same number of tokens.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import print_table, save
from rlt_data.engines import find_checkpoint
from rlt_data.formats import Problem, load_format
from rlt_data.inputs.check import good_rows
from rlt_data.settings import CountdownSettings, TrainTeacherSettings
from rlt_data.steps.countdown import make_countdown
from rlt_data.training import teacher
from rlt_data.training.rewards import DenseReward, Reward, Row
from rlt_data.training.rollouts import Rollout

#: Maximum share of time that the dense reward may add to a step.
GOAL = 0.60
#: Number of steps at the start of each run that are not measured.
WARM_UP = 2


class FreeReward(Reward):
    """Reward that takes no time."""

    def rows(self, questions: Sequence[Row], rollouts: Sequence[Rollout]) -> list[Row]:
        return [{"reward": float(len(rollout.token_ids) % 7)} for rollout in rollouts]


class Clock:
    """Progress that records when each step ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def start(self, task: str, total: int, done: int = 0) -> None:
        self.times = [time.monotonic()]

    def advance(self, rows: int = 1, tokens: int = 0) -> None:
        self.times.append(time.monotonic())

    def finish(self) -> None:
        pass

    @property
    def steps(self) -> list[float]:
        """Seconds of each measured step."""
        return [end - begin for begin, end in zip(self.times[WARM_UP:], self.times[WARM_UP + 1 :], strict=False)]


def settings(questions: Path, out: Path, steps: int) -> TrainTeacherSettings:
    fixed = {"model": "nano", "student": "nano", "in": str(questions), "out": str(out), "steps": steps}
    sizes = {"questions": 16, "group": 16, "micro_batch_size": 128, "max_tokens": 96, "batch_size": 256}
    loss = {"temperature": 1.0, "beta": 0.0, "learning_rate": 1e-5, "held_out": 0, "save_steps": 10_000}
    other = {"device": "cpu", "activation_checkpointing": False, "batch_tokens": 16_384, "sample_rows": 0}
    return TrainTeacherSettings(**(fixed | sizes | loss | other))


def run_rlt_data(questions: Path, out: Path, steps: int, reward: type[Reward]) -> list[float]:
    clock, before = Clock(), teacher.DenseReward
    if reward is FreeReward:
        teacher.DenseReward = lambda *_, **__: FreeReward()  # type: ignore[assignment,misc]
    try:
        teacher.train_teacher(settings(questions, out, steps), clock)
    finally:
        teacher.DenseReward = before  # type: ignore[misc]
    return clock.steps


def run_trl(model: Path, questions: Path, out: Path, steps: int) -> list[float]:
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from rlt_data.formats import ChatTemplate, Views
    from rlt_data.training.grpo import grpo_arguments
    from rlt_data.training.plan import PolicyPlan

    clock, arguments = Clock(), settings(questions, out, steps)
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    format = load_format(str(model / "format.yaml"))
    views = Views(format, ChatTemplate(tokenizer))
    rows = good_rows(arguments, format)
    prompts = [{"prompt": views.teacher_prompt(Problem(row.question, row.solution))} for row in rows]
    plan = PolicyPlan(len(rows), 0, 0, 0, steps, 1.0, 256, 0, 1, 2, 0)

    class Steps(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.start("", steps)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.advance()

    trainer = GRPOTrainer(
        model=str(model),
        reward_funcs=[lambda completion_ids, **_: [float(len(ids) % 7) for ids in completion_ids]],
        args=GRPOConfig(**grpo_arguments(arguments, plan, stop="")),
        train_dataset=Dataset.from_list(prompts),
        processing_class=tokenizer,
        callbacks=[Steps()],
    )
    trainer.train()
    return clock.steps


def save_with_tag_as_end(folder: Path) -> Path:
    """Save the teacher with the closing tag as its end-of-text token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = find_checkpoint("nano-teacher-warm").folder
    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    model: Any = AutoModelForCausalLM.from_pretrained(source)
    closing = load_format(str(source / "format.yaml")).explanation_tags[1]
    tokenizer.eos_token = closing
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(closing)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "format.yaml").write_bytes((source / "format.yaml").read_bytes())
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="measured steps per arm and round")
    options = parser.parse_args()
    arms: dict[str, list[float]] = {"ours, dense reward": [], "ours, free reward": [], "TRL, free reward": []}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        model, questions = save_with_tag_as_end(home / "model"), home / "questions.jsonl"
        ranges = {"fewest": 3, "most": 3, "largest": 14, "smallest_target": 0, "largest_target": 120}
        make_countdown(
            CountdownSettings(**{"out": str(questions), "rows": 512, "operators": "+-*", "largest_value": 120} | ranges)
        )
        for number in range(options.rounds):
            steps = options.steps + WARM_UP
            arms["ours, dense reward"] += run_rlt_data(questions, home / f"dense{number}", steps, DenseReward)
            arms["ours, free reward"] += run_rlt_data(questions, home / f"free{number}", steps, FreeReward)
            arms["TRL, free reward"] += run_trl(model, questions, home / f"plain{number}", steps)
    seconds = {name: statistics.median(values) for name, values in arms.items()}
    dense, free, trl = seconds.values()
    print_table([{"arm": name, "seconds a step (median)": value} for name, value in seconds.items()])
    figures = {"added to our step": dense / free - 1, "added to TRL's step": dense / trl - 1, "goal": GOAL}
    print_table([figures])
    save("grpo", {"seconds": arms, **figures})
    if figures["added to TRL's step"] > GOAL:
        raise SystemExit("the dense reward adds more than the goal")


if __name__ == "__main__":
    main()
