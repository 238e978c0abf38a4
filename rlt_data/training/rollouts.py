"""A step's samples for TRL's GRPOTrainer: sampled by our engine or by vLLM, with what a reward needs to know of them.

TRL hands a reward the text of a sample. A dense reward also needs the policy's own log-probs of what it sampled, those
of the prompt's last tokens (the padding of the prefill is part of the explanation), and why the sample ended. Our
engine returns all of that with the samples, so no further pass is made; with vLLM only the prompts are passed over
again, for their last tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from rlt_data.engines import Failure, PromptRequest, SampleRequest, Sampling
from rlt_data.engines.protocol import Floats, Ints
from rlt_data.engines.transformers import TransformersEngine
from rlt_data.engines.transformers.model import CausalModel
from rlt_data.errors import ModelError, RunFolderError
from rlt_data.formats import encode, tokens_inside
from rlt_data.formats.spans import CONTEXT_TOKENS, decode_after
from rlt_data.settings import ModelSettings, PolicySettings
from rlt_data.steps.sampling import sample_seed

#: Where a checkpoint holds the reference model; a folder of its own, so that nobody takes it for the policy.
_REFERENCE = Path("reference", "model.safetensors")


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
    """What is put before TRL's GRPOTrainer to make a trainer of ours; see :func:`policy_trainer`.

    Beside sampling, it keeps the synchronised reference model in the checkpoints (TRL loads the first one again), and
    leaves out what costs time and tells nothing: padding (TRL has every sample as long as the longest of a step), and
    the loss on held-out questions.
    """

    # Of GRPOTrainer:
    _buffered_inputs: Any
    _step: int
    accelerator: Any
    args: Any
    beta: float
    eos_token_ids: list[int]
    loss_type: str
    model: Any
    model_wrapped: Any
    processing_class: Any
    ref_model: Any
    state: Any
    use_vllm: bool
    # Ours, set by :func:`policy_trainer`:
    settings: PolicySettings
    stop: str
    tail_characters: int
    _engine: TransformersEngine | None = None
    _tails: Sequence[int] = ()
    _rollouts: Sequence[Rollout] = ()

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Tokenise rendered prompts as they are; TRL would put a second beginning-of-text token before them."""
        unique = dict.fromkeys(prompts)
        encoded = dict(zip(unique, encode(self.processing_class, list(unique)), strict=True))
        self._tails = [
            len(tokens_inside(encoded[prompt], len(prompt) - self.tail_characters, len(prompt))) for prompt in prompts
        ]
        return [encoded[prompt].ids.tolist() for prompt in prompts], None, {}

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, multimodal_fields: Any, num_generations: int, *rest: Any
    ) -> tuple[list[list[int]], Any]:
        if self.use_vllm:
            found = super()._generate_single_turn(prompt_ids, images, multimodal_fields, num_generations, *rest)  # type: ignore[misc]
            completion_ids, logprobs = found
            self._rollouts = self._read_vllm(prompt_ids, completion_ids, logprobs)
            return completion_ids, logprobs
        completion_ids, self._rollouts = self._sample(prompt_ids)
        return completion_ids, None

    def _generate(self, prompts: list[str]) -> Any:
        output = super()._generate(prompts)  # type: ignore[misc]
        extra_fields = output[5]
        extra_fields["rollout"] = list(self._rollouts)
        return output

    def _sample(self, prompt_ids: list[list[int]]) -> tuple[list[list[int]], list[Rollout]]:
        """Sample with the policy in place; samples of one prompt stand beside each other."""
        settings, training = self.settings, self.model.training
        first = self.accelerator.process_index * len(prompt_ids)
        occasion = f"{self.state.global_step}/train" if training else f"{self.state.global_step}/held out"
        block: list[PromptRequest] = []
        for place, ids in enumerate(prompt_ids):
            request = SampleRequest(str(place), sample_seed(settings.seed, occasion, first + place))
            if place and ids == prompt_ids[place - 1]:
                block[-1] = PromptRequest(block[-1].ids, [*block[-1].samples, request], block[-1].tail)
            else:
                block.append(PromptRequest(np.asarray(ids, np.int32), [request], self._tails[place]))
        sampling = Sampling(settings.temperature, settings.top_p, settings.top_k, settings.max_tokens, self.stop)
        samples: dict[int, tuple[list[int], Rollout]] = {}
        self.model.eval()
        try:
            with self.accelerator.autocast():
                for sample in self._own_engine().generate([block], sampling):
                    if isinstance(sample, Failure):
                        raise ModelError(f"sampling: {sample.reason}; take a smaller --batch-size or --max-tokens")
                    assert sample.token_ids is not None and sample.logprobs is not None
                    assert sample.tail_logprobs is not None
                    place = int(sample.key)
                    ids = sample.token_ids.tolist() + ([] if sample.end_token is None else [sample.end_token])
                    tail = np.asarray(prompt_ids[place], np.int32)[len(prompt_ids[place]) - self._tails[place] :]
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
            self.model.train(training)
        in_order = [samples[place] for place in range(len(prompt_ids))]
        return [ids for ids, _ in in_order], [rollout for _, rollout in in_order]

    def _own_engine(self) -> TransformersEngine:
        if self._engine is None:
            model = CausalModel(self.accelerator.unwrap_model(self.model_wrapped), "the policy")
            sizes = ModelSettings(batch_size=self.settings.batch_size, batch_tokens=self.settings.batch_tokens)
            self._engine = TransformersEngine(model, self.processing_class, sizes)
        return self._engine

    def _read_vllm(
        self, prompt_ids: list[list[int]], completion_ids: list[list[int]], logprobs: list[list[float | None]]
    ) -> list[Rollout]:
        tails = self._tail_logprobs(prompt_ids)
        rollouts = []
        for prompt, ids, values, tail in zip(prompt_ids, completion_ids, logprobs, tails, strict=True):
            ended = bool(ids) and ids[-1] in self.eos_token_ids
            kept = ids[:-1] if ended else ids
            text = decode_after(self.processing_class, prompt[-CONTEXT_TOKENS:], kept)
            rollouts.append(
                Rollout(
                    text,
                    np.asarray(kept, np.int32),
                    np.asarray([np.nan if value is None else value for value in values[: len(kept)]], np.float32),
                    np.asarray(prompt[len(prompt) - len(tail) :], np.int32),
                    tail,
                    "stop" if self.stop in text else "eos" if ended else "length",
                )
            )
        return rollouts

    @torch.no_grad()
    def _tail_logprobs(self, prompt_ids: list[list[int]]) -> list[Floats]:
        """Return the policy's log-probs of each prompt's last tokens; every process makes as many passes as another."""
        longest, keep = max(map(len, prompt_ids)), max([1, *self._tails])
        ids = torch.zeros(len(prompt_ids), longest, dtype=torch.int64, device=self.accelerator.device)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompt_ids):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        size = self.args.per_device_train_batch_size
        values, *_ = self._get_per_token_logps_and_entropies(self.model, ids, mask, keep, size)
        return [row[keep - tail :].float().cpu().numpy() for row, tail in zip(values, self._tails, strict=True)]

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """Cut a step's samples into micro-batches by length, longest first, so that what does not fit shows at once.

        All of them make one update, so it is the same loss; but for ``bnpo``, which weighs tokens by micro-batch.
        """
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)  # type: ignore[misc]
        if self._buffered_inputs is before or self.loss_type == "bnpo":
            return inputs
        self._buffered_inputs = _by_length(self._buffered_inputs)
        return self._buffered_inputs[self._step % len(self._buffered_inputs)]

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Any,
        attention_mask: Any,
        logits_to_keep: int,
        batch_size: int | None = None,
        **options: Any,
    ) -> tuple[Any, Any, Any]:
        """Pass over rows of like lengths together, without the columns that are padding in all of them."""
        order = attention_mask.sum(1).argsort(descending=True, stable=True)
        width = attention_mask.shape[1]
        found = []
        for rows in torch.split(order, batch_size or len(order)):
            used = attention_mask[rows].any(0).nonzero()
            padded = min(width - 1 - int(used[-1]), logits_to_keep - 1)
            columns = slice(int(used[0]), width - padded)
            values, entropies, extra = super()._get_per_token_logps_and_entropies(  # type: ignore[misc]
                model, input_ids[rows, columns], attention_mask[rows, columns], logits_to_keep - padded, **options
            )
            wide = [
                None if each is None else torch.nn.functional.pad(each, (0, padded)) for each in (values, entropies)
            ]
            found.append((*wide, extra))
        values, entropies, extras = zip(*found, strict=True)
        back = order.argsort()
        return (
            torch.cat(values)[back],
            None if entropies[0] is None else torch.cat(entropies)[back],
            None if extras[0] is None else torch.stack(extras).mean(),
        )

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        """Reward samples of held-out questions; no loss and no reference model, which nothing depends on."""
        beta, self.beta = self.beta, 0.0
        try:
            self._prepare_inputs(inputs)
        finally:
            self.beta = beta
        return torch.zeros((), device=self.accelerator.device), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add how lengths drift; leave out figures that take an end-of-text token for the only good end."""
        for metrics in self._metrics.values():  # type: ignore[attr-defined]
            for name in [name for name in metrics if "terminated" in name or "clipped_ratio" in name]:
                del metrics[name]
        if lengths := self._metrics["train"].get("completion_tokens"):  # type: ignore[attr-defined]
            noted = (entry["completion_tokens"] for entry in self.state.log_history if "completion_tokens" in entry)
            self._metrics["train"]["length_drift"] = [lengths[-1] / max(next(noted, lengths[-1]), 1.0)]  # type: ignore[attr-defined]
        super().log(logs, start_time)  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.args.sync_ref_model:
            state = _full_state(self.ref_model)
            if self.args.should_save:
                from safetensors.torch import save_file

                file = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}" / _REFERENCE
                file.parent.mkdir(parents=True, exist_ok=True)
                save_file(state, file)
        super()._save_checkpoint(model, trial)  # type: ignore[misc]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        if self.args.sync_ref_model:
            file = Path(resume_from_checkpoint) / _REFERENCE
            if not file.is_file():
                raise RunFolderError(f"{resume_from_checkpoint}: {_REFERENCE} is missing; remove this checkpoint")
            _load_full_state(self.ref_model, file)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write none; what a training was is in training.json."""


def _by_length(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Deal the rows of batches out again by the length of their completions, longest first."""
    lengths = torch.cat([batch["completion_mask"].sum(1) for batch in batches])
    dealt = torch.split(lengths.argsort(descending=True, stable=True), len(batches[0]["completion_mask"]))
    rows = {name for name, value in batches[0].items() if torch.is_tensor(value) and value.dim()}
    whole = {name: torch.cat([batch[name] for batch in batches]) for name in rows}
    return [batch | {name: whole[name][chosen] for name in rows} for batch, chosen in zip(batches, dealt, strict=True)]


def _full_state(model: Any) -> dict[str, torch.Tensor]:
    """Return all weights of a model on the CPU, however it is sharded; every process calls this."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    state: Any = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    # Tied weights are stored once each: safetensors takes no tensor twice.
    return {name: value.clone().contiguous() for name, value in state.items()}


def _load_full_state(model: Any, file: Path) -> None:
    from safetensors.torch import load_file
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    state: Any = load_file(file)
    set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True))


def policy_trainer(settings: PolicySettings, *, stop: str, tail_characters: int, **options: Any) -> Any:
    """Make a trainer.

    Args:
        settings: see there.
        stop: text that ends a sample.
        tail_characters: characters at a prompt's end whose tokens belong to the sample.
        options: arguments of ``trl.GRPOTrainer``.
    """
    from trl import GRPOTrainer

    class PolicyTrainer(Rollouts, GRPOTrainer):
        """GRPO with rollouts of ours."""

    trainer = PolicyTrainer(**options)
    trainer.settings, trainer.stop, trainer.tail_characters = settings, stop, tail_characters
    return trainer
