"""Miniature student and teacher for Countdown, trained from random weights in minutes on a CPU."""
