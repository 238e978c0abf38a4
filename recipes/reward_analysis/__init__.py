"""Does the reward of a trace foretell what a student learns from it? Rank data sets, students, correlations."""
