"""The vLLM side of the benchmarks scores and samples the same tokens as the other sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.worker import Worker
from tests.tiny_models import make_tiny


def test_vllm_scores_and_samples_what_the_other_sides_do(tmp_path: Path) -> None:
    model = str(make_tiny(tmp_path / "wide", "wide"))
    texts = [[list(range(10, 30)), list(range(40 + row, 60 + row))] for row in range(3)]
    script = Worker("peers.Script", model, "float32")
    expected = script.call("score", texts).result
    script.close()
    scorer = Worker("peers.Vllm", model, "float32", "score")
    np.testing.assert_allclose(scorer.call("score", texts).result, expected, atol=1e-4)
    scorer.close()
    sampler = Worker("peers.Vllm", model, "float32", "generate")
    assert all(sampler.call("generate", [texts[0][0]], 2, 5, logprobs).result == 10 for logprobs in (True, False))
    sampler.close()
