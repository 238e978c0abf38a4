"""``python -m rlt_data.recipes NAME --scale SCALE``: run a recipe."""

from __future__ import annotations

from rlt_data.recipes.experiment import main

if __name__ == "__main__":
    main()
