"""A Hub server for tests, with huggingface_hub pointed at it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rlt_data.storage.run import RunFolder
from tests.hub_server import HubServer
from tests.made_runs import distilled, make_run, ranked, trace


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    server = HubServer()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    # huggingface_hub reads these variables once, at import.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    yield server
    server.stop()


@pytest.fixture
def real_plots() -> None:
    """Draw real plots, which takes seconds."""


@pytest.fixture(autouse=True)
def _quick_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real_plots" not in request.fixturenames:
        monkeypatch.setattr("rlt_data.plots.card_images", lambda _: {"reward-by-rank.png": b"\x89PNG"})


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = make_run(
        tmp_path / "run",
        [*(trace("a", i, float(i)) for i in range(3)), trace("b", 0, 9.0, truncated=True, closed=False)],
        [
            trace("c", 0, 5.0, token_ids=[5, 7], logprobs=[-0.5, -0.25]),
            trace("c", 1, 6.0, completion="<script>alert(1)</script> ```\n# no heading\n<|end_of_explanation|>"),
        ],
    )
    ranked(run)
    distilled(run)
    return run
