"""From a trace to its row of scores: tokens and their alignment, the reward, the row. No model runs here."""
