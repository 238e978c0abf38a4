"""RL on a student's own answers, from the base model and from students trained on traces (a cold start)."""
