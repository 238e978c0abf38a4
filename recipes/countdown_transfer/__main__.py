"""``python -m rlt_data.recipes.countdown_transfer``."""

from __future__ import annotations

from rlt_data.recipes.countdown_transfer.recipe import run
from rlt_data.recipes.lab import main

if __name__ == "__main__":
    main("countdown_transfer", run)
