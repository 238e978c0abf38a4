"""``python -m rlt_data.recipes.teacher``."""

from __future__ import annotations

from rlt_data.recipes.lab import main
from rlt_data.recipes.teacher.recipe import run

if __name__ == "__main__":
    main("teacher", run)
