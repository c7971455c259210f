"""The explorer in a real browser: every action, the keyboard, a phone's width, and the page without a server.

The browser is the one that UNSPOKEN_BROWSER names, Chrome or Chromium on the path, or Playwright's own.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

import unspoken
from unspoken.explorer.record import write_record
from unspoken.explorer.routes import pages, served_explorer
from unspoken.serving import Limits, Served, app

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
pytestmark = pytest.mark.slow

NAMES = ("google-chrome", "google-chrome-stable", "chromium", "chromium-browser", "chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    named = os.environ.get("UNSPOKEN_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    with playwright.sync_playwright() as driver:
        try:
            opened = driver.chromium.launch(executable_path=named, args=["--no-sandbox", "--disable-gpu"])
        except playwright.Error as error:
            if os.environ.get("UNSPOKEN_BROWSER"):
                raise
            pytest.skip(f"no browser could be started: set UNSPOKEN_BROWSER ({str(error).splitlines()[0]})")
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    served, limits = Served(system=unspoken.load("tree-search", device="cpu")), Limits()
    routes = pages(served_explorer(served, limits, task=served.system.texts.task, rate=None))
    config = uvicorn.Config(app(served, limits=limits, pages=routes), port=0, log_level="critical")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    end = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < end, "the server did not start"
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/explore"
    server.should_exit = True
    thread.join(timeout=20)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> str:
    target = tmp_path_factory.mktemp("explorer") / "page.html"
    write_record("tree-search", target, problems=2, device="cpu")
    return target.as_uri()


def opened(browser: Any, address: str, width: int = 1280, **how: Any) -> Any:
    """A page on which anything that goes wrong is an error of the test."""
    page = browser.new_page(viewport={"width": width, "height": 900}, **how)
    page.set_default_timeout(20_000)
    page.problems = []
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.goto(address)
    expect(page, "The model’s own chain.")
    return page


def expect(page: Any, status: str) -> None:
    playwright.expect(page.get_by_role("status")).to_contain_text(status)


def test_every_action_is_answered_by_the_model(browser: Any, address: str) -> None:
    page = opened(browser, address)
    text, changes = page.locator("#text"), page.locator("#changes li")
    playwright.expect(text).to_have_text("MCN")
    page.get_by_label("stay as they are").check()
    page.get_by_role("button", name="Latent 2: C").click()
    for name, change in (
        ("Zero", "Latent 2 zeroed"),
        ("Swap with problem 1’s", "Latent 2 taken from problem 1"),
        ("Move earlier", "Latent 2 moved to place 1"),
        ("Move later", "Latent 2 moved to place 3"),
        ("Delete", "Latent 2 deleted"),
        ("Cut the chain after it", "Chain cut after latent 2"),
    ):
        page.get_by_role("button", name=name).click()
        playwright.expect(changes).to_have_text([change])
        expect(page, "The text changed from MCN to ")
        page.get_by_role("button", name="Undo").click()
        expect(page, "The model’s own chain.")
    page.get_by_role("button", name="Latent 2: C").click()
    page.get_by_label("Weight of C in latent 2").fill("0.95")
    expect(page, "No change of the text.")
    page.get_by_label("Weight of C in latent 2").fill("0")
    expect(page, "The text changed from MCN to ")
    assert changes.count() == 1  # the same slider is one change
    page.get_by_label("Another token").fill("nonsense")
    page.get_by_role("button", name="Give it a weight").click()
    expect(page, "is no single token")
    playwright.expect(changes).to_have_count(1)
    page.get_by_label("Noise").fill("2")
    playwright.expect(changes).to_have_count(2)
    page.get_by_role("button", name="Reset").click()
    expect(page, "The model’s own chain.")
    page.get_by_role("button", name="Find where the answer flips").click()
    playwright.expect(page.locator("#flips")).to_contain_text("The answer flips between")
    page.get_by_label("Towards it").fill("1")
    expect(page, "The text changed from MCN to IKA.")
    page.get_by_role("button", name="Next test problem").click()
    expect(page, "The model’s own chain.")
    playwright.expect(text).to_have_text("IKA")
    assert page.problems == [] or all("400" in problem for problem in page.problems)  # the refused token
    page.close()


def test_a_keyboard_is_enough(browser: Any, address: str) -> None:
    page = opened(browser, address)
    page.get_by_role("button", name="Latent 1: M").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Latent 2: C")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) != "none"
    page.get_by_label("Weight of C in latent 2").focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    playwright.expect(page.locator("#changes li")).to_have_count(1)
    assert page.evaluate("document.activeElement.type") == "range"  # it keeps the focus while it is moved
    unnamed = "[...document.querySelectorAll('button, input, select')].filter(e => !e.closest('[hidden]') && "
    unnamed += "!e.textContent.trim() && !e.getAttribute('aria-label') && !(e.labels && e.labels.length)).length"
    assert page.evaluate(unnamed) == 0
    assert page.problems == []
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen_or_too_small_to_read(
    browser: Any, address: str, width: int, scheme: str
) -> None:
    page = opened(browser, address, width, color_scheme=scheme)
    page.get_by_role("button", name="Find where the answer flips").click()
    playwright.expect(page.locator("#flips li").first).to_contain_text("MCN")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    sizes = "Math.min(...[...document.body.querySelectorAll('*')].map(e => parseFloat(getComputedStyle(e).fontSize)))"
    assert page.evaluate(sizes) >= 12
    assert page.problems == []
    page.close()


def test_the_file_works_alone(browser: Any, record: str) -> None:
    page = opened(browser, record, offline=True)
    playwright.expect(page.locator("#flips")).to_contain_text("The answer flips between")
    page.get_by_role("button", name="Latent 2: C").click()
    page.get_by_role("button", name="Zero").click()
    expect(page, "The text changed from MCN to ")
    page.get_by_label("Weight of C in latent 2").fill("0.5")
    playwright.expect(page.locator("#changes li")).to_have_text(["Latent 2: C at 0.50, the rest written anew"])
    page.get_by_label("Towards it").fill("0.1")
    expect(page, "No change of the text.")
    page.get_by_label("Problem", exact=True).select_option("1")
    playwright.expect(page.locator("#text")).to_have_text("IKA")
    assert page.problems == []
    page.close()


def test_a_text_of_markup_stays_text(browser: Any, address: str) -> None:
    page = opened(browser, address)
    page.locator("#problem").fill("<img src=x onerror=alert(1)>")
    page.get_by_role("button", name="Answer", exact=True).click()
    expect(page, "not a tree-search problem: '<img src=x onerror=alert(1)>'")
    assert page.locator("img").count() == 0
    page.close()


def test_one_file_and_nothing_else(record: str) -> None:
    assert len([*Path(record.removeprefix("file://")).parent.iterdir()]) == 1
