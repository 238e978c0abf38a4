"""Train the base student from random weights, and make the rows of the teacher's warm-up.

    torchrun --nproc-per-node 2 -m rlt_data.recipes.nano.build base --out student
    python -m rlt_data.recipes.nano.build rows --out warm-up.jsonl
    python -m rlt_data.recipes.nano.build skills --model student

The base has a plain training loop, in one or several processes; the teacher is trained with ``rlt-data``. For a model
of this size, TRL's trainer spends most of its time on padding and bookkeeping. Here, batches contain rows of similar
length. README.md compares the speeds.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import random
import shutil
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rlt_data.formats import ChatTemplate, Problem, Views, load_format
from rlt_data.progress import is_main_process
from rlt_data.recipes.nano.corpus import (
    LARGE,
    MOST_ATTEMPTS,
    SMALL,
    Domain,
    base_texts,
    draw_attempts,
    facts,
    train_problems,
    warm_up_rows,
)
from rlt_data.recipes.nano.tokenizer import build_tokenizer
from rlt_data.training.examples import IGNORED, tokenize_texts

logger = logging.getLogger("rlt_data")

FORMAT = Path(__file__).with_name("format.yaml")
#: Set by torchrun.
RANK, PROCESSES = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
#: Number of batches to draw and sort by length together.
_BATCHES_PER_SORT = 16

Example = dict[str, list[int]]


def new_model(tokenizer: Any, seed: int) -> Any:
    """Return a randomly initialised Llama with 0.37 million parameters; every engine supports heads of size 32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=0.1,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def make_batches(examples: Iterator[Example], steps: int, size: int, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Yield this process's share of padded batches of similar length, in random order.

    Yields:
        ``input_ids`` and ``labels`` of shape (size / processes, longest row), padded on the right with token 0 and
        ignored labels. A causal model needs no mask for padding on the right.
    """
    shuffle = random.Random(seed)
    while steps > 0:
        by_length = sorted(islice(examples, size * _BATCHES_PER_SORT), key=lambda row: len(row["input_ids"]))
        batches = [by_length[start : start + size] for start in range(0, len(by_length) - size + 1, size)]
        if not batches:
            return
        shuffle.shuffle(batches)
        for batch in batches[:steps]:
            rows = batch[RANK::PROCESSES]
            longest = max(len(row["input_ids"]) for row in rows)
            yield {
                name: torch.tensor([row[name] + [fill] * (longest - len(row[name])) for row in rows])
                for name, fill in (("input_ids", 0), ("labels", IGNORED))
            }
        steps -= len(batches)


def train(model: Any, examples: Iterator[Example], *, steps: int, batch_size: int, rate: float, seed: int) -> None:
    """Train with AdamW and a cosine schedule; the loss is the mean over the learned tokens of each process."""
    if PROCESSES > 1:
        torch.distributed.init_process_group("gloo")
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    warmup_steps = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup_steps, (1 + math.cos(math.pi * step / steps)) / 2)
    )
    start_time, tokens, losses = time.monotonic(), 0, []
    model.train()
    for step, batch in enumerate(make_batches(examples, steps, batch_size, seed), 1):
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        tokens += batch["input_ids"].numel() * PROCESSES
        losses.append(loss.detach())
        if step % 100 == 0 or step == steps:
            speed = tokens / (time.monotonic() - start_time)
            logger.info("step %d: loss %.4f, %.0f tokens/s", step, float(torch.stack(losses).mean()), speed)
            losses.clear()
    model.eval()
    if PROCESSES > 1:
        torch.distributed.destroy_process_group()


def save(model: Any, tokenizer: Any, out: Path) -> None:
    """Save a checkpoint with its format."""
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    shutil.copy(FORMAT, out / "format.yaml")


def skills(model: Any, tokenizer: Any, views: Views, domain: Domain, count: int = 512) -> dict[str, float]:
    """Measure the sub-skills of a base student: the accuracy of its likeliest token where only one token is right.

    Args:
        model: student model.
        tokenizer: tokenizer of the student.
        views: format and chat template.
        domain: domain of problems and facts.
        count: number of fact texts, and number of attempt texts on problems of the train split.

    Returns:
        Accuracies: ``facts`` (results in fact texts), ``steps`` (results in attempts), ``check`` (yes and no),
        ``yes`` (where yes is right), ``last`` (solution tokens, copied from the last attempt).
    """
    draw = random.Random("skills")
    hits: dict[str, list[bool]] = {name: [] for name in ("facts", "steps", "check", "yes", "last")}
    after_equals, verdicts = tokenizer.convert_tokens_to_ids("="), tokenizer.convert_tokens_to_ids(["yes", "no"])
    start = tokenizer.convert_tokens_to_ids("<solution>")
    texts = [f"{tokenizer.bos_token} {facts(draw, 12, [domain])}" for _ in range(count)]
    for _ in range(count):
        problem = draw.choice(train_problems(domain))
        search = draw_attempts(draw, problem, draw.randint(1, MOST_ATTEMPTS), hit=draw.random() < 0.5)
        thought = " ".join(attempt.text(problem.target) for attempt in search)
        texts.append(views.student(Problem(problem.question, search[-1].expression), f"{thought} ").text)
    for number, text in enumerate(texts):
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            right = (model(input_ids=ids).logits[0, :-1].argmax(-1) == ids[0, 1:]).tolist()
        answering = False
        for before, token, hit in zip(ids[0, :-1].tolist(), ids[0, 1:].tolist(), right, strict=True):
            answering = answering or before == start
            if answering:
                hits["last"].append(hit)
            elif before == after_equals:
                hits["facts" if number < count else "steps"].append(hit)
            elif token in verdicts:
                hits["check"].append(hit)
                if token == verdicts[0]:
                    hits["yes"].append(hit)
    return {name: sum(outcomes) / max(1, len(outcomes)) for name, outcomes in hits.items()}


def all_skills(model: Any, tokenizer: Any, views: Views) -> dict[str, dict[str, float]]:
    """Measure :func:`skills` in both domains."""
    domains = {"small": SMALL, "large": LARGE}
    measured = {name: skills(model, tokenizer, views, domain) for name, domain in domains.items()}
    return {name: {key: round(value, 4) for key, value in values.items()} for name, values in measured.items()}


def make_base(out: Path, *, steps: int, batch_size: int, rate: float, seed: int) -> None:
    """Train the base student from random weights."""
    tokenizer = build_tokenizer()
    views = Views(load_format(str(FORMAT)), ChatTemplate(tokenizer))
    views.check()
    model = new_model(tokenizer, seed)
    logger.info("%d parameters", sum(parameter.numel() for parameter in model.parameters()))
    train(
        model,
        tokenize_texts(base_texts(seed, views), tokenizer),
        steps=steps,
        batch_size=batch_size,
        rate=rate,
        seed=seed,
    )
    if not is_main_process():
        return
    for name, accuracies in all_skills(model, tokenizer, views).items():
        logger.info("%s: %s", name, accuracies)
    save(model, tokenizer, out)


def main() -> None:
    """Run one step of run.sh."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["base", "rows", "skills"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", type=Path, help="student model (skills)")
    parser.add_argument("--steps", type=int, default=3200, help="training steps (base)")
    parser.add_argument("--rows", type=int, default=96_000, help="number of rows (rows)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rate", type=float, default=4e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO if is_main_process() else logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if arguments.step == "base":
        make_base(
            arguments.out,
            steps=arguments.steps,
            batch_size=arguments.batch_size,
            rate=arguments.rate,
            seed=arguments.seed,
        )
    elif arguments.step == "rows":
        lines = [json.dumps(row) + "\n" for row in warm_up_rows(arguments.seed, arguments.rows)]
        arguments.out.write_text("".join(lines), encoding="utf-8")
    else:
        tokenizer = AutoTokenizer.from_pretrained(arguments.model)
        views = Views(load_format(str(arguments.model / "format.yaml")), ChatTemplate(tokenizer))
        print(json.dumps(all_skills(AutoModelForCausalLM.from_pretrained(arguments.model), tokenizer, views)))


if __name__ == "__main__":
    main()
