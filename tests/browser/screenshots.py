"""Make the pictures of docs/report.md: python -m tests.browser.screenshots RUN ONE OTHER FOLDER.

RUN gets a report, and ONE is compared with OTHER. All runs must be scored with --per-token. The pictures show
explanations.jsonl, and in OTHER the explanations of gemma-3-270m, both scored with gemma-3-270m.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.browser.conftest import FLAGS, Shown, reported

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}


def main(alone: str, one: str, other: str, folder: str) -> None:
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver, tempfile.TemporaryDirectory() as temporary:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = reported(alone, Path(temporary) / "alone.html").as_uri()
        against = reported(one, Path(temporary) / "against.html", against=other).as_uri()
        size = {"viewport": {"width": 1280, "height": 860}}
        for name, address, keys, context in [
            ("overview", page, [], size),
            ("traces", page, ["t", *"jjjj", "Enter"], size),
            ("against", against, ["t", *"jjjjjjjjjjjjj", "Enter"], size | {"color_scheme": "dark"}),
            ("phone", page, ["t", *"jjjj", "Enter"], PHONE),
        ]:
            shown = Shown(browser, address, **context)
            shown.press(*keys)
            if keys:
                shown.page.wait_for_selector(".trace .k", state="attached")
            shown.page.wait_for_timeout(300)
            shown.page.screenshot(path=out / f"report-{name}.png")
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
