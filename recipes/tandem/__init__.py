"""Alternate between teacher and student: does a student retrained on the best traces make a better teacher?"""
