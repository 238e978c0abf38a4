"""Does RL on the dense reward make a better teacher, and what does each term of the reward contribute?"""
