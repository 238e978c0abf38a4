"""A second implementation of the reward, as plain as possible, to compare the first with.

It scores one trace at a time with two forward passes over the complete texts, and finds spans by character offsets.
"""

from __future__ import annotations

from bisect import bisect_left
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlt_data.formats import Format

TEMPERATURE, LAMBDA, ALPHA = 0.7, 3.0, 0.01


class Reference:
    """Scores traces with a ChatML student and teacher that share a tokenizer."""

    def __init__(self, student: Path, teacher: Path, format: Format, *, full_kl: bool = False) -> None:
        self.format = format
        self.full_kl = full_kl
        self.tokenizer: Any = AutoTokenizer.from_pretrained(student)
        self.student: Any = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
        self.teacher: Any = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)

    def score(self, question: str, solution: str, completion: str) -> dict[str, float]:
        format = self.format
        opening, closing = format.explanation_tags
        thought = format.padding + completion.split(closing)[0]
        content = format.solution_padding + solution + format.solution_padding
        head = self._chat(format.student_system, question) + format.thought_prefix + format.thought_tags[0]
        middle = format.thought_tags[1] + format.separator + format.solution_tags[0]
        tail = format.solution_tags[1] + "<|im_end|>\n"
        at = len(head) + len(thought) + len(middle)
        (thought_lp, student_dist), (solution_lp, _) = self._logprobs(
            self.student,
            head + thought + middle + content + tail,
            [(len(head), len(head) + len(thought)), (at, at + len(content))],
        )
        prefill = format.solution_tags[0] + content + format.solution_tags[1] + format.separator + opening
        head = self._chat(format.teacher_system, question) + prefill
        span = len(head), len(head) + len(thought)
        [(teacher_lp, teacher_dist)] = self._logprobs(self.teacher, head + thought + closing, [span])
        kl = (teacher_dist.exp() * (teacher_dist - student_dist)).sum(-1) if self.full_kl else teacher_lp - thought_lp
        penalty = 0.0 if closing in completion else -1.0
        r_ss = solution_lp.mean() + ALPHA * solution_lp.min()
        return {
            "solution_logprob_mean": solution_lp.mean().item(),
            "solution_logprob_min": solution_lp.min().item(),
            "kl_mean": kl.mean().item(),
            "kl_max": kl.max().item(),
            "penalty": penalty,
            "reward": (r_ss - LAMBDA * (kl.mean() + ALPHA * kl.max())).item() + penalty,
            "reward_without_entropy": (r_ss - LAMBDA * ((-thought_lp).mean() + ALPHA * (-thought_lp).max())).item()
            + penalty,
            "thought_tokens": len(thought_lp),
            "solution_tokens": len(solution_lp),
        }

    def measures(self, question: str, completion: str, temperature: float = 1.0) -> dict[str, float]:
        """Compute the measures of an explanation from complete distributions."""
        values, ranks = self._explanation(self._chat(self.format.student_system, question), completion, temperature)
        without, _ = self._explanation(self._chat(self.format.student_system, ""), completion, temperature)
        return {
            "thought_logprob_mean": values.mean().item(),
            "thought_logprob_min": values.min().item(),
            "perplexity": (-values.mean()).exp().item(),
            "token_rank_mean": ranks.float().mean().item(),
            "rsr": (ranks.clamp(max=100).sum() / -values.sum()).item(),
            "surprising_share": (values.exp() < 0.01).float().mean().item(),
            "ifd": (-values.mean()).exp().item() / (-without.mean()).exp().item(),
        }

    def local(self, question: str, steps: list[str], temperature: float = 1.0) -> float:
        """Compute local naturalness: each step after the question and at most four steps before it.

        The tokens are those of the complete text; each belongs to the step of its first character.
        """
        format = self.format
        before = self._chat(format.student_system, question) + format.thought_prefix + format.thought_tags[0]
        encoded = self.tokenizer(
            before + "".join(steps) + format.thought_tags[1], add_special_tokens=False, return_offsets_mapping=True
        )
        ids, starts = encoded["input_ids"], [start for start, _ in encoded["offset_mapping"]]
        bounds = [len(before) + len("".join(steps[:number])) for number in range(len(steps) + 1)]
        tokens = [bisect_left(starts, bound) for bound in bounds]
        means: list[float] = []
        for number, (first, last) in enumerate(zip(tokens, tokens[1:], strict=False)):
            window = ids[: tokens[0]] + ids[tokens[max(0, number - 4)] : last]
            with torch.no_grad():
                logprobs = (self.student(torch.tensor([window])).logits[0].float() / temperature).log_softmax(-1)
            at = range(len(window) - (last - first), len(window))
            means.append(sum(logprobs[index - 1, window[index]].item() for index in at) / len(at))
        return sum(means) / len(means)

    def _explanation(self, chat: str, completion: str, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-probs and ranks of the explanation's tokens."""
        format = self.format
        before = chat + format.thought_prefix + format.thought_tags[0]
        thought = format.padding + completion.split(format.explanation_tags[1])[0]
        span = len(before), len(before) + len(thought)
        text = before + thought + format.thought_tags[1]
        [(values, distributions)] = self._logprobs(self.student, text, [span], temperature)
        return values, 1 + (distributions > values[:, None]).sum(-1)

    def _chat(self, system: str, question: str) -> str:
        return (
            f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        )

    def _logprobs(
        self, model: Any, text: str, spans: list[tuple[int, int]], temperature: float = TEMPERATURE
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return, for each span, the log-probs of its tokens and the complete distributions at these tokens."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = torch.tensor([encoded["input_ids"]])
        with torch.no_grad():
            logprobs = (model(ids).logits[0].float() / temperature).log_softmax(-1)
        results = []
        for start, end in spans:
            inside = [
                index
                for index, (begin, stop) in enumerate(encoded["offset_mapping"])
                if begin >= start and stop <= end and stop > begin
            ]
            rows = torch.stack([logprobs[index - 1] for index in inside])
            results.append((rows[range(len(inside)), ids[0, inside]], rows))
        return results
