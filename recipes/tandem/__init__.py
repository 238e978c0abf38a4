"""Teacher and student in turns: does a student that is refreshed from the best traces make a better teacher?"""
