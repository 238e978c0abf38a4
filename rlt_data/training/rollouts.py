"""Samples of a GRPO step, from the transformers engine or vLLM, as a ``rollout_func`` of TRL's GRPOTrainer.

TRL passes only the text of a sample to a reward. The dense reward also needs the policy's log-probs of the sample and
of the prompt's last tokens (the padding of the prefill belongs to the explanation), and the finish reason. The
transformers engine returns them with the samples; with vLLM, one more forward pass over the prompts computes the
log-probs of their last tokens. The reward receives all of it as the column ``rollout``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rlt_data.engines import Failure, PromptRequest, SampleRequest, Sampling
from rlt_data.engines.protocol import Floats, Ints
from rlt_data.engines.transformers import TransformersEngine
from rlt_data.engines.transformers.model import CausalModel
from rlt_data.errors import ModelError
from rlt_data.formats import encode, tokens_inside
from rlt_data.formats.spans import CONTEXT_TOKENS, decode_after, unmarked
from rlt_data.settings import ModelSettings, PolicySettings
from rlt_data.steps.sampling import sample_seed
from rlt_data.training.sharding import complete_weights

if TYPE_CHECKING:
    from rlt_data.training.trl_patches import PolicyTrainer


@dataclass(frozen=True)
class Rollout:
    """A sample of the policy.

    Attributes:
        text: sampled text without an end-of-text token.
        token_ids: token ids of the text, shape (tokens,).
        logprobs: log-probs of these tokens at the sampling temperature, shape (tokens,).
        tail_ids: last token ids of the prompt, those of the padding, shape (tail,).
        tail_logprobs: log-probs of the tail, shape (tail,).
        finish_reason: reason why sampling ended, as in :class:`rlt_data.engines.Sample`.
    """

    text: str
    token_ids: Ints
    logprobs: Floats
    tail_ids: Ints
    tail_logprobs: Floats
    finish_reason: Literal["stop", "eos", "length"]


class Rollouts:
    """A ``rollout_func`` of TRL's GRPOTrainer.

    Args:
        settings: sampling parameters, seed and batch sizes.
        stop: text that ends a sample.
        tail_characters: number of characters at the end of a prompt that belong to the explanation (the padding).
    """

    def __init__(self, settings: PolicySettings, *, stop: str, tail_characters: int) -> None:
        self._settings = settings
        self._stop = stop
        self._tail_characters = tail_characters
        self._engine: TransformersEngine | None = None

    def __call__(self, prompts: list[str], trainer: PolicyTrainer) -> dict[str, Any]:
        """Sample one completion per prompt.

        Args:
            prompts: rendered prompts of this process; equal prompts are adjacent, one per sample.
            trainer: trainer of the policy.

        Returns:
            ``prompt_ids``, ``completion_ids`` and ``logprobs`` (None without vLLM) for TRL, ``rollout`` for the reward.
        """
        prompt_ids, tails = self._tokenize(prompts, trainer.processing_class)
        if trainer.use_vllm:
            count = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
            _, completion_ids, top_logprobs, _ = trainer.vllm_generation.generate(prompt_ids, None, count)
            logprobs = [[top[0] for top in sample] for sample in top_logprobs]
            rollouts = self.read_vllm(trainer, prompt_ids, tails, completion_ids, logprobs)
        else:
            completion_ids, rollouts = self._sample(trainer, prompt_ids, tails)
            logprobs = None
        return {
            "prompt_ids": prompt_ids,
            "completion_ids": completion_ids,
            "logprobs": logprobs,
            "rollout": rollouts,
        }

    def _tokenize(self, prompts: list[str], tokenizer: Any) -> tuple[list[list[int]], list[int]]:
        """Return token ids and tail length of each prompt; the text already contains the special tokens."""
        unique = dict.fromkeys(prompts)
        encodings = dict(zip(unique, encode(tokenizer, list(unique)), strict=True))
        tails = [
            len(tokens_inside(encodings[prompt], length - self._tail_characters, length))
            for prompt in prompts
            for length in [len(unmarked(prompt))]
        ]
        return [encodings[prompt].ids.tolist() for prompt in prompts], tails

    def _sample(
        self, trainer: PolicyTrainer, prompt_ids: list[list[int]], tails: Sequence[int]
    ) -> tuple[list[list[int]], list[Rollout]]:
        """Sample with the transformers engine and the policy's current weights."""
        settings, training = self._settings, trainer.model.training
        first = trainer.accelerator.process_index * len(prompt_ids)
        occasion = f"{trainer.state.global_step}/train" if training else f"{trainer.state.global_step}/held out"
        block: list[PromptRequest] = []
        for index, ids in enumerate(prompt_ids):
            request = SampleRequest(str(index), sample_seed(settings.seed, occasion, first + index))
            if index and ids == prompt_ids[index - 1]:
                block[-1] = PromptRequest(block[-1].ids, [*block[-1].samples, request], block[-1].tail)
            else:
                block.append(PromptRequest(np.asarray(ids, np.int32), [request], tails[index]))
        sampling = Sampling(settings.temperature, settings.top_p, settings.top_k, settings.max_tokens, self._stop)
        samples: dict[int, tuple[list[int], Rollout]] = {}
        trainer.model.eval()
        try:
            with complete_weights(trainer), trainer.accelerator.autocast():
                for sample in self._policy_engine(trainer).generate([block], sampling):
                    if isinstance(sample, Failure):
                        raise ModelError(f"sampling: {sample.reason}; lower --sampling-batch-size or --max-tokens")
                    assert sample.token_ids is not None and sample.logprobs is not None
                    assert sample.tail_logprobs is not None
                    index = int(sample.key)
                    ids = sample.token_ids.tolist() + ([] if sample.end_token is None else [sample.end_token])
                    tail = np.asarray(prompt_ids[index], np.int32)[len(prompt_ids[index]) - tails[index] :]
                    samples[index] = (
                        ids,
                        Rollout(
                            sample.text,
                            sample.token_ids,
                            sample.logprobs,
                            tail,
                            sample.tail_logprobs,
                            sample.finish_reason,
                        ),
                    )
        finally:
            trainer.model.train(training)
        in_order = [samples[index] for index in range(len(prompt_ids))]
        return [ids for ids, _ in in_order], [rollout for _, rollout in in_order]

    def _policy_engine(self, trainer: PolicyTrainer) -> TransformersEngine:
        from accelerate.utils import is_peft_model

        if self._engine is None:
            policy = trainer.accelerator.unwrap_model(trainer.model_wrapped)
            # With adapters, this is the model whose layers contain them.
            model = CausalModel(policy.get_base_model() if is_peft_model(policy) else policy, "the policy")
            sizes = ModelSettings(batch_size=self._settings.batch_size, batch_tokens=self._settings.batch_tokens)
            self._engine = TransformersEngine(model, trainer.processing_class, sizes)
        return self._engine

    def read_vllm(
        self,
        trainer: PolicyTrainer,
        prompt_ids: list[list[int]],
        tails: Sequence[int],
        completion_ids: list[list[int]],
        logprobs: list[list[float | None]],
    ) -> list[Rollout]:
        """Convert vLLM's samples to rollouts, and compute the log-probs of the prompts' last tokens."""
        tail_logprobs = trainer.tail_logprobs(prompt_ids, tails)
        rollouts = []
        for prompt, ids, values, tail in zip(prompt_ids, completion_ids, logprobs, tail_logprobs, strict=True):
            ended = bool(ids) and ids[-1] in trainer.eos_token_ids
            text_ids = ids[:-1] if ended else ids
            text = decode_after(trainer.processing_class, prompt[-CONTEXT_TOKENS:], text_ids)
            rollouts.append(
                Rollout(
                    text,
                    np.asarray(text_ids, np.int32),
                    np.asarray([np.nan if value is None else value for value in values[: len(text_ids)]], np.float32),
                    np.asarray(prompt[len(prompt) - len(tail) :], np.int32),
                    tail,
                    "stop" if self._stop in text else "eos" if ended else "length",
                )
            )
        return rollouts
