from __future__ import annotations

import polars as pl

from rlt_data.signals.parallel import slices


def test_slices_have_about_2_mb_of_text_and_all_rows() -> None:
    lengths = [900_000, 0, 900_000, 5_000_000, 1, 1]
    frame = pl.DataFrame({"a": ["x" * length or None for length in lengths], "b": ["y" * 400_000] * 6})
    found = list(slices(frame, ("a", "b")))
    assert [len(piece) for piece in found] == [2, 1, 3]
    assert pl.concat(found).equals(frame)
    assert [len(piece) for piece in slices(frame.head(0), ("a", "b"))] == [0]
