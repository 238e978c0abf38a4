"""Overrides of private methods of TRL and Transformers, tested with the versions that pyproject.toml allows.

Sampling uses TRL's public ``rollout_func`` (:mod:`rlt_data.training.rollouts`). The rest has no public hook:

| override | reason |
|---|---|
| ``_prepare_inputs`` | sort micro-batches by length |
| ``_get_per_token_logps_and_entropies`` | skip padding |
| ``evaluate`` | leave the random state unchanged |
| ``prediction_step`` | compute rewards of held-out questions without their loss |
| ``log`` | add length drift, remove misleading metrics |
| ``_save_checkpoint``, ``_load_optimizer_and_scheduler`` | save and load the synchronised reference model |
| ``add_reference_adapter`` | a synchronised reference model for training adapters |
| ``create_model_card`` | write no model card |
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from rlt_data.engines.protocol import Floats
from rlt_data.errors import RunFolderError
from rlt_data.training.sharding import full_state, load_full_state

#: Reference model in a checkpoint; in a subfolder, so that it is not mistaken for the policy.
_REFERENCE = Path("reference", "model.safetensors")
#: Adapter that TRL uses as the reference model if it exists; otherwise the base model is the reference.
_REFERENCE_ADAPTER = "ref"


class PolicyTrainer:
    """Overrides of TRL's GRPOTrainer, as a mix-in for :func:`policy_trainer`."""

    # Attributes of GRPOTrainer:
    _buffered_inputs: Any
    _metrics: Any
    _step: int
    accelerator: Any
    add_callback: Any
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
        """Return the policy's log-probs of each prompt's last tokens; all ranks do the same number of passes."""
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
        """Sort a step's samples by length into micro-batches, longest first, so that out-of-memory errors come early.

        Why: TRL keeps the order of the prompts and has no hook for it. The order does not change the loss, except for
        ``bnpo``, which weights tokens by micro-batch.
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
        """Batch rows of similar length, without the columns that are padding in all of them.

        Why: TRL pads every sample to the longest of the step and computes all of that padding.
        """
        order = attention_mask.sum(1).argsort(descending=True, stable=True)
        width = attention_mask.shape[1]
        results = []
        for rows in torch.split(order, batch_size or len(order)):
            used = attention_mask[rows].any(0).nonzero()
            padded = min(width - 1 - int(used[-1]), logits_to_keep - 1)
            columns = slice(int(used[0]), width - padded)
            values, entropies, extra = super()._get_per_token_logps_and_entropies(  # type: ignore[misc]
                model, input_ids[rows, columns], attention_mask[rows, columns], logits_to_keep - padded, **options
            )
            full_width = [
                None if tensor is None else torch.nn.functional.pad(tensor, (0, padded))
                for tensor in (values, entropies)
            ]
            results.append((*full_width, extra))
        values, entropies, extras = zip(*results, strict=True)
        inverse = order.argsort()
        return (
            torch.cat(values)[inverse],
            None if entropies[0] is None else torch.cat(entropies)[inverse],
            None if extras[0] is None else torch.stack(extras).mean(),
        )

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Evaluate without changing the random state.

        Why: the data loader draws a seed, and TRL shuffles the samples of the next step at random. A training that
        continues to more steps was also evaluated at its former end, and must not differ from one of that length.
        """
        with torch.random.fork_rng(devices=[]):
            return dict(super().evaluate(*arguments, **options))  # type: ignore[misc]

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        """Compute rewards of held-out questions, without loss and reference model.

        Why: TRL also computes their loss, which nothing uses and which costs more than sampling.
        """
        beta, self.beta = self.beta, 0.0
        try:
            self._prepare_inputs(inputs)
        finally:
            self.beta = beta
        return torch.zeros((), device=self.accelerator.device), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the length drift; remove metrics that count only end-of-text tokens as a proper end.

        Why: TRL collects metrics in ``_metrics`` and logs them here; our samples end with a closing tag.
        """
        for metrics in self._metrics.values():
            for name in [name for name in metrics if "terminated" in name or "clipped_ratio" in name]:
                del metrics[name]
        if lengths := self._metrics["train"].get("completion_tokens"):
            logged = (entry["completion_tokens"] for entry in self.state.log_history if "completion_tokens" in entry)
            self._metrics["train"]["length_drift"] = [lengths[-1] / max(next(logged, lengths[-1]), 1.0)]
        super().log(logs, start_time)  # type: ignore[misc]

    def add_reference_adapter(self) -> None:
        """Add a frozen copy of the adapter as the reference model, which is updated during training.

        Why: TRL refuses ``sync_ref_model`` with adapters, but uses an adapter named ``ref`` as the reference model. An
        update averages the matrices of both adapters.
        """
        self.model.add_adapter(_REFERENCE_ADAPTER, self.model.peft_config["default"])
        for parameter, reference in self._adapter_pairs().values():
            reference.data = parameter.data.clone()
            reference.requires_grad_(False)
        # Checkpoints keep it where those of full models do; the trained model would contain it as a second adapter.
        self.model.save_pretrained = partial(self.model.save_pretrained, selected_adapters=["default"])
        self.add_callback(_adapter_synchroniser(self))

    @torch.no_grad()
    def update_reference_adapter(self) -> None:
        """Move the reference adapter towards the adapter."""
        share = self.args.ref_model_mixup_alpha
        for parameter, reference in self._adapter_pairs().values():
            reference.mul_(1 - share).add_(parameter, alpha=share)

    def _adapter_pairs(self) -> dict[str, tuple[Any, Any]]:
        """Return each parameter of the adapter and its copy in the reference adapter, by name; empty without copies."""
        parameters, mark = dict(self.model.named_parameters()), f".{_REFERENCE_ADAPTER}."
        return {
            name: (parameters[name.replace(mark, ".default.")], parameter)
            for name, parameter in parameters.items()
            if mark in name and name.replace(mark, ".default.") in parameters
        }

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save the synchronised reference model first, so that every complete checkpoint contains it.

        Why: TRL saves only the policy, and resumes with the initial reference model.
        """
        adapter = {name: _unsharded(reference) for name, (_, reference) in self._adapter_pairs().items()}
        if state := full_state(self.accelerator.unwrap_model(self.ref_model)) if self.args.sync_ref_model else adapter:
            if self.args.should_save:
                from safetensors.torch import save_file

                file = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}" / _REFERENCE
                file.parent.mkdir(parents=True, exist_ok=True)
                save_file(state, file)
        super()._save_checkpoint(model, trial)  # type: ignore[misc]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load the synchronised reference model too.

        Why: as for ``_save_checkpoint``. With DeepSpeed, Transformers does not call ``_load_from_checkpoint``.

        Raises:
            RunFolderError: the checkpoint has no reference model.
        """
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        is_adapter = bool(self._adapter_pairs())
        if checkpoint and (self.args.sync_ref_model or is_adapter):
            file = Path(checkpoint) / _REFERENCE
            if not file.is_file():
                raise RunFolderError(f"{checkpoint}: {_REFERENCE} is missing; remove this checkpoint")
            model = self.accelerator.unwrap_model(self.model if is_adapter else self.ref_model)
            load_full_state(model, file, strict=not is_adapter)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Do nothing.

        Why: TRL writes a README.md at every save; ``push`` writes the model card from training.json.
        """


def _by_length(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Redistribute the rows of batches by completion length, longest first."""
    lengths = torch.cat([batch["completion_mask"].sum(1) for batch in batches])
    indices = torch.split(lengths.argsort(descending=True, stable=True), len(batches[0]["completion_mask"]))
    names = {name for name, value in batches[0].items() if torch.is_tensor(value) and value.dim()}
    columns = {name: torch.cat([batch[name] for batch in batches]) for name in names}
    return [batch | {name: columns[name][rows] for name in names} for batch, rows in zip(batches, indices, strict=True)]


def _unsharded(parameter: Any) -> torch.Tensor:
    """Return a possibly sharded parameter on the CPU; every process must call this."""
    whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
    return whole.detach().cpu().clone()


def _adapter_synchroniser(trainer: PolicyTrainer) -> Any:
    """Return a callback that updates the reference adapter."""
    from transformers import TrainerCallback

    class AdapterSynchroniser(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step % args.ref_model_sync_steps == 0:
                trainer.update_reference_adapter()

    return AdapterSynchroniser()


def policy_trainer(**options: Any) -> Any:
    """Return a ``trl.GRPOTrainer`` with the overrides of this module; takes the arguments of ``GRPOTrainer``."""
    from trl import GRPOTrainer

    class Trainer(PolicyTrainer, GRPOTrainer):
        """GRPO with the overrides above."""

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are using 'rollout_func'")  # experimental, so TRL's version is pinned
        return Trainer(**options)
