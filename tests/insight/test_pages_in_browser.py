"""The pages of a run and of an evaluation in a real browser: nothing hangs over on a phone, and all of it is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Browser

FITS = "document.documentElement.scrollWidth <= innerWidth"


@pytest.fixture
def pages(run_cli: Any, tmp_path: Path) -> list[Path]:
    """The pages of a run and of its evaluation, of a model with mistakes."""
    trained = run_cli("train", "mlp", "--data", "digits", "--epochs", 2, "--out", "run")
    assert trained.returncode == 0, trained.stderr
    evaluated = run_cli("eval", "run", "--split", "test")
    assert evaluated.returncode == 0 and "page: run/eval-test.html" in evaluated.stderr, evaluated.stderr
    return [tmp_path / "run/report.html", tmp_path / "run/eval-test.html"]


def test_the_pages_hold_what_they_show(pages: list[Path]) -> None:
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for part in ("accuracy", "Confusion matrix", "Per class", "Reliability", "the most confident first", "Recipe"):
            assert part in text, (page.name, part)
        assert text.count("<img") >= 12 and 'src="data:image/png;base64,' in text and "fingerprint" in text
        assert not [part for part in ("http:", "https:", "<script", "@import", "url(") if part in text]


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")
def test_they_read_on_a_phone_and_on_a_desk(pages: list[Path], tmp_path: Path) -> None:
    with Browser(tmp_path / "profile", dark=True) as browser:
        for page in pages:
            browser("Page.navigate", url=page.as_uri())
            browser.until("document.readyState == 'complete' && document.querySelectorAll('img').length > 11")
            for width in (390, 1280):
                metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
                browser("Emulation.setDeviceMetricsOverride", **metrics)
                browser.until(f"innerWidth == {width}")
                assert browser.run(FITS), (page.name, width)
            assert browser.run("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
            assert browser.run("document.querySelector('.tile b').textContent.endsWith('%')")  # accuracy comes first
            assert (
                browser.run("getComputedStyle(document.body).color") == "rgb(255, 255, 255)"
            )  # it follows the dark mode
        assert browser.complaints == []
