"""``python -m rlt_data.recipes.reward_analysis``."""

from __future__ import annotations

from rlt_data.recipes.lab import main
from rlt_data.recipes.reward_analysis.recipe import run

if __name__ == "__main__":
    main("reward_analysis", run)
