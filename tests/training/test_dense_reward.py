from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rlt_data.engines import open_model
from rlt_data.formats import load_format
from rlt_data.settings import ModelSettings, TrainTeacherSettings

pytest.importorskip("trl", reason="needs the extra train")


def test_a_sample_that_cannot_be_scored_has_no_reward_and_the_others_have_theirs(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """Without padding the solution ``)`` fuses with the tag after it, so it has no token; a long text does not fit."""
    from rlt_data.training.rewards import DenseReward
    from rlt_data.training.rollouts import Rollout

    bare = tmp_path / "bare.yaml"
    bare.write_text("extends: rlt\nname: bare\npadding: ''\nsolution_padding: ''\nseparator: ''\n")
    format = load_format(str(bare))
    student = open_model(str(tiny("fusing")), ModelSettings(device="cpu"))
    settings = TrainTeacherSettings.model_validate(
        {"model": str(tiny("fusing")), "student": str(tiny("fusing")), "in": "rows.jsonl", "out": "out"}
    )
    reward = DenseReward(settings, student, format, student.tokenizer, same_tokenizer=True)

    def rollout(text: str) -> Rollout:
        ids = np.asarray(student.tokenizer(text)["input_ids"], np.int32)
        nothing = np.zeros(0, np.int32)
        return Rollout(text, ids, np.full(len(ids), -1, np.float32), nothing, np.zeros(0, np.float32), "stop")

    end = format.explanation_tags[1]
    samples = [(")", f"We add.{end}"), ("2", f"We add.{end}"), ("2", "long " * 3000), ("2", end)]
    questions = [
        {"question": "q", "question_id": solution, "solution": solution, "system": None} for solution, _ in samples
    ]
    rows = reward.rows(questions, [rollout(text) for _, text in samples])
    assert [row["reward"] is None for row in rows] == [True, False, True, False]
    assert rows[0]["explanation"] == "We add." and rows[1]["well_formed"]
    assert rows[3]["empty"] and rows[3]["kl_mean"] == 1.0
