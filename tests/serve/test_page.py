"""The page in a real browser: an image is dropped, chosen, pasted, and its class is read.

Under BIGMODEL_SOAK=1, where Debian's chromium is installed (apt-get install chromium).
"""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from conftest import Run
from figures import SOAK
from serving import Running, Start, image, started

from bigmodel_cli.serve.page import PAGE, POLICY

pytest_plugins = ("services",)
in_a_browser = pytest.mark.skipif(
    not SOAK or CHROMIUM is None, reason="BIGMODEL_SOAK is not set" if CHROMIUM else "chromium is not installed"
)
ANSWER = "[...document.querySelectorAll('#answers h2')].map(h => h.textContent)"


def test_the_page_holds_all_it_needs() -> None:
    assert len(re.findall("<script>", PAGE)) == len(re.findall("<style>", PAGE)) == 1
    assert not re.findall(r"(?:src|href)=|@import|url\(|style=|\son\w+=|innerHTML", PAGE)
    assert POLICY.count("sha256-") == 2


def visit(browser: Browser, service: Running) -> None:
    browser("Page.navigate", url=service.url + "/")
    browser.until("document.title == 'shades'")


@in_a_browser
def test_a_image_is_dropped_and_its_class_read(service: Running, tmp_path: Path) -> None:
    (tmp_path / "a <i>light<b> one.png").write_bytes(image(200))
    (tmp_path / "broken.png").write_bytes(image()[:60])
    with Browser(tmp_path / "profile") as browser:
        visit(browser, service)
        browser.drop([tmp_path / "a <i>light<b> one.png", tmp_path / "broken.png"], 300, 250)
        browser.until("document.querySelector('dl') && document.querySelector('.failed')")
        assert browser.run(ANSWER) == ["cannot decode the image: image file is truncated", "light"]
        shares = browser.run("[...document.querySelectorAll('dl > div')].map(d => d.innerText.split(/\\s+/).join(' '))")
        assert shares[0].startswith("light 9") and shares[1].startswith("<b>white</b> ")  # text, never markup
        assert "a <i>light<b> one.png" in browser.run("document.body.innerText")
        assert browser.run("document.querySelectorAll('main b, main i:not(.bar i)').length") == 0
        widths = browser.run("[...document.querySelectorAll('.bar i')].map(i => parseFloat(i.style.width))")
        assert widths[0] > 90 and sum(widths) == pytest.approx(100, abs=0.1)
        assert "<b>white</b>" not in browser.run("document.getElementById('said').innerHTML")
        refused = [c for c in browser.complaints if "400" not in c]  # the browser tells of the broken image's status
        assert refused == []


@in_a_browser
def test_a_image_is_chosen_by_keyboard_and_pasted(service: Running, tmp_path: Path) -> None:
    (tmp_path / "dark.png").write_bytes(image(64))
    with Browser(tmp_path / "profile", width=390, height=844, dark=True) as browser:
        visit(browser, service)
        browser.key("Tab", 9)
        assert browser.run("document.activeElement.id") == "file"
        assert browser.run("getComputedStyle(document.getElementById('drop')).outlineStyle") == "solid"
        node = browser("DOM.querySelector", nodeId=browser("DOM.getDocument")["root"]["nodeId"], selector="#file")
        browser("DOM.setFileInputFiles", files=[str(tmp_path / "dark.png")], nodeId=node["nodeId"])
        browser.until("document.querySelector('dl')")
        assert browser.run(ANSWER) == ["dark"]
        raw = base64.b64encode(image(255)).decode()
        browser.run(f"""(() => {{
            const bytes = Uint8Array.from(atob('{raw}'), c => c.charCodeAt(0)), data = new DataTransfer();
            data.items.add(new File([bytes], 'image.png', {{ type: 'image/png' }}));
            dispatchEvent(new ClipboardEvent('paste', {{ clipboardData: data }}));
        }})()""")
        browser.until("document.querySelectorAll('dl').length == 2")
        assert browser.run(ANSWER) == ["<b>white</b>", "dark"]
        assert browser.run("document.documentElement.scrollWidth") <= 390  # nothing hangs over on a phone
        assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(15, 18, 22)"
        assert browser.complaints == []


@in_a_browser
def test_a_text_is_typed(start: Start, tmp_path: Path) -> None:
    service = start(folder="words")
    with Browser(tmp_path / "profile") as browser:
        browser("Page.navigate", url=service.url + "/")
        browser.until("document.title == 'words'")
        browser.run("document.getElementById('text').focus()")
        browser("Input.insertText", text="a good, fine <script>")
        browser.key("Enter", 13, "\r", modifiers=2)
        browser.until("document.querySelector('dl')")
        assert browser.run(ANSWER) == ["glad"] and browser.complaints == []


@in_a_browser
def test_a_user_is_recommended_items(run_cli: Run, tmp_path: Path) -> None:
    """By name or by what they saw, as many as asked for; who is unknown is told so."""
    rows = [f"u{u},i{(3 * u + t) % 20},{t}" for u in range(40) for t in range(8)]
    (tmp_path / "a.csv").write_text("\n".join(["user,item,time", *rows]) + "\n")
    assert run_cli("train", "two-tower", "--data", "./a.csv", "--epochs", "1", "--out", "run").returncode == 0
    assert run_cli("export", "run", "--format", "retrieval", "--seconds", "0", "--out", "films").returncode == 0
    service = started(tmp_path / "films", tmp_path / "log")
    fill = "document.getElementById('{}').value = '{}'"
    try:
        with Browser(tmp_path / "profile", width=390, height=844) as browser:
            browser("Page.navigate", url=service.url + "/")
            browser.until("document.title == 'two-tower'")
            browser.run("document.getElementById('user').focus()")
            browser("Input.insertText", text="u7")
            browser.key("Enter", 13, "\r")
            browser.until("document.querySelector('dl')")
            assert browser.run("document.querySelectorAll('dl dt').length") == 10
            browser.run("; ".join(fill.format(*pair) for pair in (("user", ""), ("history", "i3\\ni4"), ("many", "3"))))
            browser.run("document.getElementById('users').requestSubmit()")
            browser.until("document.querySelectorAll('dl').length == 2")
            assert browser.run("document.querySelectorAll('li:first-child dl dt').length") == 3
            browser.run(f"{fill.format('user', 'nobody')}; document.getElementById('users').requestSubmit()")
            browser.until("document.querySelector('.failed')")
            assert browser.run(ANSWER)[0].startswith("no user 'nobody'")
            assert browser.run("document.documentElement.scrollWidth") <= 390
            assert [c for c in browser.complaints if "404" not in c] == []
    finally:
        assert service.stop() == 0


@in_a_browser
def test_another_site_can_neither_ask_nor_read(service: Running, start: Start, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        browser("Page.navigate", url=start().url.replace("127.0.0.1", "localhost") + "/healthz")
        browser.until("document.body.innerText.includes('ok')")
        asked = f"fetch('{service.url}/predict', {{method: 'POST', body: 'x'}})"
        assert browser.run(f"{asked}.then(r => r.status, e => e.name)") == "TypeError"
    assert service.figures()['bigmodel_requests_total{code="403",path="/predict"}'] == 1
