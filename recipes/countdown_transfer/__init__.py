"""A teacher that was trained in one domain explains another: against direct RL there, and transferring a student."""
