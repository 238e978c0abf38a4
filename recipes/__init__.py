"""Recipes: reproducible experiments, one per folder."""
