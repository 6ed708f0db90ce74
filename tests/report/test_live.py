"""`report --live`, asked by a client and looked at by a real browser."""

from __future__ import annotations

import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from comal_fast.cli import main
from comal_fast.config import load_config
from comal_fast.loop import run_all
from comal_fast.report import live
from comal_fast.store.directory import RunDirectory


@pytest.fixture
def directory(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    monkeypatch.setattr(live, "SECONDS", 0.0)
    config = load_config(tiny_run, ["training.save_steps=0"])
    run_all(config)
    return RunDirectory(config.output_dir)


@pytest.fixture
def address(directory: RunDirectory) -> Iterator[str]:
    with live.serve(directory.path, 0) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def get(address: str, **headers: str) -> str:
    request = urllib.request.Request(address, headers=headers)
    with urllib.request.urlopen(request) as answer:
        return str(answer.read().decode())


def reseed(directory: RunDirectory, seed: int) -> None:
    """Something that the page shows, and that a run writes, is another."""
    text = directory.config.read_text()
    directory.config.write_text(re.sub(r"(?m)^seed: \d+$", f"seed: {seed}", text))


def test_served(directory: RunDirectory, address: str) -> None:
    page, stamp = get(address), get(address + "stamp")
    assert "COMAL run" in page and f'data-stamp="{stamp}"' in page
    assert get(address + "stamp") == stamp  # nothing moved
    assert "seed 4242" not in page
    reseed(directory, 4242)
    assert float(get(address + "stamp")) > float(stamp)
    assert "seed 4242" in get(address)
    assert not directory.report.exists()  # the run writes its own
    for path, headers, status in (("none", {}, 404), ("", {"Host": "evil.example"}, 403)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(address + path, **headers)
        assert refused.value.code == status


def test_refused(directory: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    here = str(directory.path)
    with live.serve(directory.path, 0) as server:
        port = str(server.server_port)
        assert main(["report", here, "--live", "--port", port]) == 2
        assert f"--port {port}" in capsys.readouterr().err
    for words in (["--port", "1"], ["--live", "--json"], ["--live", "--port", "70000"]):
        assert main(["report", here, *words]) == 2
        assert words[-2 if words[-1][0] != "-" else -1] in capsys.readouterr().err


@pytest.fixture
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser(directory: RunDirectory, address: str, browser: Any, dark: bool) -> None:
    """It shows itself anew in place; keyboard, a narrow screen, no request elsewhere, no error."""
    page = browser.new_page(
        viewport={"width": 360, "height": 740}, color_scheme="dark" if dark else "light"
    )
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda line: line.type == "error" and wrong.append(line.text))
    page.goto(address)
    page.locator("#live", has_text="as of").wait_for()
    wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert not page.evaluate(wide)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(23, 26, 33)" if dark else "rgb(255, 255, 255)")

    page.keyboard.press("Tab")  # the first link of the page
    first = page.evaluate("document.activeElement.getAttribute('href')")
    assert first and first.startswith("#")
    summaries = page.locator("summary")
    if summaries.count():
        summaries.first.focus()
        page.keyboard.press("Enter")
        assert page.evaluate("document.querySelector('details').open")
    else:
        page.keyboard.press("Enter")
    where = page.evaluate("[scrollY, document.activeElement.outerHTML]")
    reseed(directory, 4242)
    page.locator(".facts", has_text="4242").wait_for(timeout=60_000)
    assert page.evaluate("[scrollY, document.activeElement.outerHTML]") == where
    if summaries.count():
        assert page.evaluate("document.querySelector('details').open")
    assert not wrong
    assert all(url.startswith((address, "data:")) for url in asked)


@pytest.mark.slow
def test_the_server_ends(directory: RunDirectory, browser: Any) -> None:
    page = browser.new_page()
    with live.serve(directory.path, 0) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        time.sleep(1)
        server.shutdown()
    page.locator("#live", has_text="has ended").wait_for(timeout=30_000)
