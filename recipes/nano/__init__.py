"""Miniature student and teacher for Countdown, made from nothing in minutes on a processor."""
