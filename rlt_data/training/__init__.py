"""Training with TRL: supervised fine-tuning and GRPO, with verified checkpoints and resuming."""
