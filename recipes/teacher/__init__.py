"""Does RL on the dense reward make a better teacher? Students before and after RL, with and without the KL term."""
