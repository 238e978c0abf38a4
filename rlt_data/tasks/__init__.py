"""Problems with checkable answers (Countdown, mathematics, multiple choice), benchmarks and graders."""
