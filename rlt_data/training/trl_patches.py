"""Everything that depends on private names of TRL and Transformers; tested with the versions pyproject.toml allows.

Samples come through TRL's public ``rollout_func`` (:mod:`rlt_data.training.rollouts`). What has no public hook is
overridden here, each with its reason:

| override | reason |
|---|---|
| ``_prepare_inputs`` | micro-batches by length |
| ``_get_per_token_logps_and_entropies`` | no passes over padding |
| ``prediction_step`` | rewards of held-out questions without their loss |
| ``log`` | how lengths drift; no figures that mislead |
| ``_save_checkpoint``, ``_load_from_checkpoint`` | the synchronised reference model |
| ``create_model_card`` | none is wanted |
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rlt_data.engines.protocol import Floats
from rlt_data.errors import RunFolderError

#: Where a checkpoint holds the reference model; a folder of its own, so that nobody takes it for the policy.
_REFERENCE = Path("reference", "model.safetensors")


class PolicyTrainer:
    """Our overrides of TRL's GRPOTrainer, as a class to inherit from before it; see :func:`policy_trainer`."""

    # Of GRPOTrainer:
    _buffered_inputs: Any
    _metrics: Any
    _step: int
    accelerator: Any
    args: Any
    beta: float
    eos_token_ids: list[int]
    loss_type: str
    model: Any
    model_wrapped: Any
    num_generations: Any
    num_generations_eval: Any
    processing_class: Any
    ref_model: Any
    state: Any
    use_vllm: bool
    vllm_generation: Any

    @torch.no_grad()
    def tail_logprobs(self, prompt_ids: list[list[int]], tails: Sequence[int]) -> list[Floats]:
        """Return the policy's log-probs of each prompt's last tokens; all processes make the same number of passes."""
        longest, keep = max(map(len, prompt_ids)), max([1, *tails])
        ids = torch.zeros(len(prompt_ids), longest, dtype=torch.int64, device=self.accelerator.device)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompt_ids):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        size = self.args.per_device_train_batch_size
        values, *_ = self._get_per_token_logps_and_entropies(self.model, ids, mask, keep, size)
        return [row[keep - tail :].float().cpu().numpy() for row, tail in zip(values, tails, strict=True)]

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """Cut a step's samples into micro-batches by length, longest first, so that what does not fit shows at once.

        Why: TRL cuts them in the order of the prompts and has no hook for the order. All of them make one update, so
        it is the same loss; but for ``bnpo``, which weighs tokens by micro-batch.
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
        """Pass over rows of like lengths together, without the columns that are padding in all of them.

        Why: TRL makes every sample as long as the longest of a step and passes over all of that padding.
        """
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
        """Reward samples of held-out questions; no loss and no reference model, which nothing depends on.

        Why: TRL computes the loss on them too, in passes that cost more than the samples.
        """
        beta, self.beta = self.beta, 0.0
        try:
            self._prepare_inputs(inputs)
        finally:
            self.beta = beta
        return torch.zeros((), device=self.accelerator.device), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add how lengths drift; leave out figures that take an end-of-text token for the only good end.

        Why: TRL collects figures in ``_metrics`` and adds them here; our samples end with a closing tag.
        """
        for metrics in self._metrics.values():
            for name in [name for name in metrics if "terminated" in name or "clipped_ratio" in name]:
                del metrics[name]
        if lengths := self._metrics["train"].get("completion_tokens"):
            noted = (entry["completion_tokens"] for entry in self.state.log_history if "completion_tokens" in entry)
            self._metrics["train"]["length_drift"] = [lengths[-1] / max(next(noted, lengths[-1]), 1.0)]
        super().log(logs, start_time)  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save the synchronised reference model first, so that a checkpoint that ended well has it.

        Why: TRL saves the policy alone, and starts from the first reference model again when it resumes.
        """
        if self.args.sync_ref_model:
            state = _full_state(self.ref_model)
            if self.args.should_save:
                from safetensors.torch import save_file

                file = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}" / _REFERENCE
                file.parent.mkdir(parents=True, exist_ok=True)
                save_file(state, file)
        super()._save_checkpoint(model, trial)  # type: ignore[misc]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the synchronised reference model too; see :meth:`_save_checkpoint`.

        Raises:
            RunFolderError: the checkpoint lacks it.
        """
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        if self.args.sync_ref_model:
            file = Path(resume_from_checkpoint) / _REFERENCE
            if not file.is_file():
                raise RunFolderError(f"{resume_from_checkpoint}: {_REFERENCE} is missing; remove this checkpoint")
            _load_full_state(self.ref_model, file)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write none; what a training was is in training.json.

        Why: TRL writes a README.md beside the checkpoints at every save; ``push`` writes the card of a model.
        """


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


def policy_trainer(**options: Any) -> Any:
    """Make a ``trl.GRPOTrainer`` with the overrides of this file, from the trainer's own arguments."""
    from trl import GRPOTrainer

    class Trainer(PolicyTrainer, GRPOTrainer):
        """GRPO with the overrides above."""

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are using 'rollout_func'")  # that it is experimental: hence the pin
        return Trainer(**options)
