"""``python -m rlt_data.recipes.cold_start``."""

from __future__ import annotations

from rlt_data.recipes.cold_start.recipe import run
from rlt_data.recipes.lab import main

if __name__ == "__main__":
    main("cold_start", run)
