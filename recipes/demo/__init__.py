"""The complete pipeline on word problems, in a few minutes on a laptop."""
