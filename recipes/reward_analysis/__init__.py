"""Does a trace's reward predict what a student learns from it? Data sets by rank, students, correlations."""
