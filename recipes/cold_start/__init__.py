"""RL on a student's own answers: from the base, and from students that were given a start by teachers' traces."""
