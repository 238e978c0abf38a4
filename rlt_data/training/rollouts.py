"""A step's samples, as TRL's GRPOTrainer takes them from a ``rollout_func``: sampled by our engine or by vLLM.

TRL hands a reward the text of a sample. A dense reward also needs the policy's own log-probs of what it sampled, those
of the prompt's last tokens (the padding of the prefill is part of the explanation), and why the sample ended. Our
engine returns all of that with the samples, so no further pass is made; with vLLM only the prompts are passed over
again, for their last tokens. It reaches the reward as the column ``rollout``.
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
from rlt_data.formats.spans import CONTEXT_TOKENS, decode_after
from rlt_data.settings import ModelSettings, PolicySettings
from rlt_data.steps.sampling import sample_seed

if TYPE_CHECKING:
    from rlt_data.training.trl_patches import PolicyTrainer


@dataclass(frozen=True)
class Rollout:
    """A sample of the policy.

    Attributes:
        text: what it adds to the prompt, without an end-of-text token.
        token_ids: its tokens, shape (tokens,).
        logprobs: their log-probs under the policy that sampled them, at the sampling temperature.
        tail_ids: the last tokens of the prompt, as many as were asked for.
        tail_logprobs: their log-probs.
        finish_reason: see :class:`rlt_data.engines.Sample`.
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
        settings: sampling, seed and batch sizes.
        stop: text that ends a sample.
        tail_characters: characters at a prompt's end whose tokens belong to the sample.
    """

    def __init__(self, settings: PolicySettings, *, stop: str, tail_characters: int) -> None:
        self._settings = settings
        self._stop = stop
        self._tail_characters = tail_characters
        self._engine: TransformersEngine | None = None

    def __call__(self, prompts: list[str], trainer: PolicyTrainer) -> dict[str, Any]:
        """Sample.

        Args:
            prompts: rendered prompts of this process, each as often as it is to be sampled, next to each other.
            trainer: trains the policy.

        Returns:
            ``prompt_ids``, ``completion_ids`` and ``logprobs`` (None without vLLM) for TRL, ``rollout`` for the reward.
        """
        prompt_ids, tails = self._tokenised(prompts, trainer.processing_class)
        if trainer.use_vllm:
            count = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
            _, completion_ids, found, _ = trainer.vllm_generation.generate(prompt_ids, None, count)
            logprobs = [[likeliest[0] for likeliest in sample] for sample in found]
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

    def _tokenised(self, prompts: list[str], tokenizer: Any) -> tuple[list[list[int]], list[int]]:
        """Return the tokens of prompts, which have their special tokens already, and how many are the sample's."""
        unique = dict.fromkeys(prompts)
        encoded = dict(zip(unique, encode(tokenizer, list(unique)), strict=True))
        tails = [
            len(tokens_inside(encoded[prompt], len(prompt) - self._tail_characters, len(prompt))) for prompt in prompts
        ]
        return [encoded[prompt].ids.tolist() for prompt in prompts], tails

    def _sample(
        self, trainer: PolicyTrainer, prompt_ids: list[list[int]], tails: Sequence[int]
    ) -> tuple[list[list[int]], list[Rollout]]:
        """Sample with the policy in place; samples of one prompt are next to each other."""
        settings, training = self._settings, trainer.model.training
        first = trainer.accelerator.process_index * len(prompt_ids)
        occasion = f"{trainer.state.global_step}/train" if training else f"{trainer.state.global_step}/held out"
        block: list[PromptRequest] = []
        for place, ids in enumerate(prompt_ids):
            request = SampleRequest(str(place), sample_seed(settings.seed, occasion, first + place))
            if place and ids == prompt_ids[place - 1]:
                block[-1] = PromptRequest(block[-1].ids, [*block[-1].samples, request], block[-1].tail)
            else:
                block.append(PromptRequest(np.asarray(ids, np.int32), [request], tails[place]))
        sampling = Sampling(settings.temperature, settings.top_p, settings.top_k, settings.max_tokens, self._stop)
        samples: dict[int, tuple[list[int], Rollout]] = {}
        trainer.model.eval()
        try:
            with trainer.accelerator.autocast():
                for sample in self._own_engine(trainer).generate([block], sampling):
                    if isinstance(sample, Failure):
                        raise ModelError(f"sampling: {sample.reason}; take a smaller --batch-size or --max-tokens")
                    assert sample.token_ids is not None and sample.logprobs is not None
                    assert sample.tail_logprobs is not None
                    place = int(sample.key)
                    ids = sample.token_ids.tolist() + ([] if sample.end_token is None else [sample.end_token])
                    tail = np.asarray(prompt_ids[place], np.int32)[len(prompt_ids[place]) - tails[place] :]
                    samples[place] = (
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
        in_order = [samples[place] for place in range(len(prompt_ids))]
        return [ids for ids, _ in in_order], [rollout for _, rollout in in_order]

    def _own_engine(self, trainer: PolicyTrainer) -> TransformersEngine:
        if self._engine is None:
            model = CausalModel(trainer.accelerator.unwrap_model(trainer.model_wrapped), "the policy")
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
        """Read what vLLM sampled, of which the log-probs of the prompts' last tokens are computed here."""
        tail_logprobs = trainer.tail_logprobs(prompt_ids, tails)
        rollouts = []
        for prompt, ids, values, tail in zip(prompt_ids, completion_ids, logprobs, tail_logprobs, strict=True):
            ended = bool(ids) and ids[-1] in trainer.eos_token_ids
            kept = ids[:-1] if ended else ids
            text = decode_after(trainer.processing_class, prompt[-CONTEXT_TOKENS:], kept)
            rollouts.append(
                Rollout(
                    text,
                    np.asarray(kept, np.int32),
                    np.asarray([np.nan if value is None else value for value in values[: len(kept)]], np.float32),
                    np.asarray(prompt[len(prompt) - len(tail) :], np.int32),
                    tail,
                    "stop" if self._stop in text else "eos" if ended else "length",
                )
            )
        return rollouts
