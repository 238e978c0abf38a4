"""Make the miniature models from nothing: base student, and rows for the warm-up of its teacher.

    torchrun --nproc-per-node 2 -m rlt_data.recipes.nano.build base --out student
    python -m rlt_data.recipes.nano.build rows --out warm-up.jsonl
    python -m rlt_data.recipes.nano.build skills --model student

The loop of the base is our own and plain, in one process or several; everything after it is trained with the product's
commands. At this size TRL's trainer spends more time on padding (rows of a batch are of any length; here they are
sorted into batches of like lengths) and on its own bookkeeping than on the model; README.md has both speeds.
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

from rlt_data.formats import ChatTemplate, Views, load_format
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
#: Of torchrun; without it there is one process.
RANK, PROCESSES = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
#: Batches that are drawn together and cut by length.
_SORTED_TOGETHER = 16

Example = dict[str, list[int]]


def new_model(tokenizer: Any, seed: int) -> Any:
    """Return a Llama of 0.37 million random parameters; heads are of size 32, the least that every engine takes."""
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


def batches(examples: Iterator[Example], steps: int, size: int, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Cut examples into padded batches of like lengths, in random order; of each, every process takes its share.

    Yields:
        ``input_ids`` and ``labels``, each of shape (size / processes, longest row), padded at the end with token 0 and
        no label. Padding comes after everything that counts, so a causal model needs no mask.
    """
    shuffle = random.Random(seed)
    while steps > 0:
        drawn = sorted(islice(examples, size * _SORTED_TOGETHER), key=lambda row: len(row["input_ids"]))
        cut = [drawn[start : start + size] for start in range(0, len(drawn) - size + 1, size)]
        if not cut:
            return
        shuffle.shuffle(cut)
        for whole in cut[:steps]:
            rows = whole[RANK::PROCESSES]
            longest = max(len(row["input_ids"]) for row in rows)
            yield {
                name: torch.tensor([row[name] + [fill] * (longest - len(row[name])) for row in rows])
                for name, fill in (("input_ids", 0), ("labels", IGNORED))
            }
        steps -= len(cut)


def train(model: Any, examples: Iterator[Example], *, steps: int, batch_size: int, rate: float, seed: int) -> None:
    """Train with AdamW and a cosine schedule; the loss is the mean over a process's counted tokens."""
    if PROCESSES > 1:
        torch.distributed.init_process_group("gloo")
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    rise = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rise, (1 + math.cos(math.pi * step / steps)) / 2)
    )
    began, tokens, losses = time.monotonic(), 0, []
    model.train()
    for step, batch in enumerate(batches(examples, steps, batch_size, seed), 1):
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
            speed = tokens / (time.monotonic() - began)
            logger.info("step %d: loss %.4f, %.0f tokens/s", step, float(torch.stack(losses).mean()), speed)
            losses.clear()
    model.eval()
    if PROCESSES > 1:
        torch.distributed.destroy_process_group()


def save(model: Any, tokenizer: Any, out: Path) -> None:
    """Write a checkpoint that carries its format."""
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    shutil.copy(FORMAT, out / "format.yaml")


def skills(model: Any, tokenizer: Any, views: Views, domain: Domain, count: int = 512) -> dict[str, float]:
    """Measure what a base student must own, by its likeliest token at each place where one answer is right.

    Args:
        model: a student.
        tokenizer: its tokenizer.
        views: format and chat template.
        domain: of the problems and facts.
        count: texts of facts, and as many traces of attempts with problems of the train split.

    Returns:
        Accuracies: ``facts`` (results in texts of facts), ``steps`` (results in attempts), ``check`` (yes and no),
        ``yes`` (the check where yes is right), ``last`` (tokens of the solution, which is the last attempt's).
    """
    draw = random.Random("skills")
    hits: dict[str, list[bool]] = {name: [] for name in ("facts", "steps", "check", "yes", "last")}
    after_equals, verdicts = tokenizer.convert_tokens_to_ids("="), tokenizer.convert_tokens_to_ids(["yes", "no"])
    start = tokenizer.convert_tokens_to_ids("<solution>")
    texts = [f"{tokenizer.bos_token} {facts(draw, 12, [domain])}" for _ in range(count)]
    for _ in range(count):
        problem = draw.choice(train_problems(domain))
        tried = draw_attempts(draw, problem, draw.randint(1, MOST_ATTEMPTS), hit=draw.random() < 0.5)
        thought = " ".join(each.text(problem.target) for each in tried)
        texts.append(views.student(problem.question, tried[-1].expression, f" {thought} ").text)
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
    return {name: sum(found) / max(1, len(found)) for name, found in hits.items()}


def all_skills(model: Any, tokenizer: Any, views: Views) -> dict[str, dict[str, float]]:
    """Measure :func:`skills` with small inputs and with large ones."""
    domains = {"small": SMALL, "large": LARGE}
    measured = {name: skills(model, tokenizer, views, domain) for name, domain in domains.items()}
    return {name: {key: round(value, 4) for key, value in found.items()} for name, found in measured.items()}


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
    for name, found in all_skills(model, tokenizer, views).items():
        logger.info("%s: %s", name, found)
    save(model, tokenizer, out)


def main() -> None:
    """Run a step of run.sh."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["base", "rows", "skills"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", type=Path, help="a student, for skills")
    parser.add_argument("--steps", type=int, default=3200, help="of the base")
    parser.add_argument("--rows", type=int, default=96_000, help="of the warm-up")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rate", type=float, default=4e-3, help="largest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO if is_main_process() else logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if given.step == "base":
        make_base(given.out, steps=given.steps, batch_size=given.batch_size, rate=given.rate, seed=given.seed)
    elif given.step == "rows":
        lines = [json.dumps(row) + "\n" for row in warm_up_rows(given.seed, given.rows)]
        given.out.write_text("".join(lines), encoding="utf-8")
    else:
        tokenizer = AutoTokenizer.from_pretrained(given.model)
        views = Views(load_format(str(given.model / "format.yaml")), ChatTemplate(tokenizer))
        print(json.dumps(all_skills(AutoModelForCausalLM.from_pretrained(given.model), tokenizer, views)))


if __name__ == "__main__":
    main()
