"""Problems with checkable answers: Countdown, mathematics, multiple choice, and the benchmarks made of them."""
