"""The demo in a real browser, headless and on loopback: `make test-browser`."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from modeling_yan import YanForConditionalGeneration
from modeling_yan.common.hub import read_model, read_tokenizer
from modeling_yan.evaluation.drafts import draft_text, write_with_drafts

from ..helpers import ROOT, YAN_E2E, flags, free_port, process_environment, save_tiny_peer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER),
        reason="no chromium and chromedriver here; on Debian: apt-get install chromium chromium-driver",
    ),
]
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Whatever is not on loopback is not there.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--window-size=1240,947",
)
PATIENCE = 60
# Every step that is shown, in the order that it is shown in.
RECORD_STEPS = """
    window.steps = [];
    new MutationObserver(() => {
        const now = document.querySelector("#canvas .yan-step.now");
        if (now && steps.at(-1) !== now.textContent) steps.push(now.textContent);
    }).observe(document.body, {childList: true, subtree: true, characterData: true});
"""


def wait_for(condition: Callable[[], object], what: str) -> object:
    """What a condition gives as soon as it gives something true; elements that are being replaced count as nothing."""
    from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException

    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            if found := condition():
                return found
        except (NoSuchElementException, StaleElementReferenceException):
            pass
        time.sleep(0.05)
    raise AssertionError(f"in {PATIENCE} seconds there was no {what}")


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """Of the demo of the shipped model, with a random baseline, in a process of its own."""
    folder = tmp_path_factory.mktemp("demo")
    save_tiny_peer(folder / "tiny-bart", tokenizer=read_tokenizer(YAN_E2E))
    port, log = free_port(), (folder / "log.txt").open("w+")
    command = [sys.executable, ROOT / "examples" / "app.py", "--infilling", *flags(baseline="tiny-bart", port=port)]
    process = subprocess.Popen(command, cwd=folder, env=process_environment(), stdout=log, stderr=subprocess.STDOUT)

    def told() -> str:
        return Path(log.name).read_text()

    def started() -> bool:
        assert process.poll() is None, told()
        return "Running on" in told()

    try:
        wait_for(started, "server")
        yield f"http://127.0.0.1:{port}/"
        assert process.poll() is None, f"the server ended with {process.returncode}: {told()}"
        assert "Traceback" not in told(), told()
    finally:
        process.terminate()
        process.wait(timeout=30)
        log.close()


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory() as profile, pytest.MonkeyPatch.context() as patch:
        # The driver is on loopback, too.
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            patch.delenv(name)
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for option in (*OPTIONS, f"--user-data-dir={profile}"):
            options.add_argument(option)
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        try:
            yield driver
        finally:
            driver.quit()


class Page:
    """What a visitor does and sees."""

    def __init__(self, browser, address: str):
        self.browser = browser
        browser.get(address)
        wait_for(lambda: self.all("button#write"), "button to write")

    def all(self, selector: str) -> list:
        from selenium.webdriver.common.by import By

        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        from selenium.webdriver.common.by import By

        return self.browser.find_element(By.CSS_SELECTOR, selector).text

    def open(self, tab: str) -> None:
        wait_for(lambda: [b for b in self.all("button[role=tab]") if b.text == tab], f"tab {tab}")[0].click()

    def click(self, selector: str, text: str | None = None) -> None:
        def found() -> list:
            chosen = [e for e in self.all(selector) if text is None or e.text.strip() == text]
            return [e for e in chosen if e.is_displayed() and e.is_enabled()]

        wait_for(found, f"{selector} {text or ''}")[0].click()

    def type(self, selector: str, text: str) -> None:
        """Puts a text into a field in place of what is there."""
        from selenium.webdriver.common.keys import Keys

        field = self.all(selector)[0]
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(Keys.DELETE)
        field.send_keys(text)

    def last_row(self, panel: str = "#canvas") -> str:
        return self.all(f"{panel} .yan-rows div > span")[-1].text


@pytest.fixture
def page(browser, address) -> Page:
    """With three steps; the model's own is one."""
    opened = Page(browser, address)
    assert opened.all("#steps input[type=number]")[0].get_attribute("value") == "1"
    opened.type("#steps input[type=number]", "3\t")
    return opened


@pytest.fixture(scope="module")
def writing():
    model = read_model(YanForConditionalGeneration, YAN_E2E, dtype=torch.float32)
    source = "name[Aromi], eatType[pub], food[Chinese], area[city centre]"
    return source, write_with_drafts(model, read_tokenizer(YAN_E2E), source, steps=3)


def test_the_canvas_fills_step_by_step_and_ends_with_the_text_of_the_model(page, writing):
    source, written = writing
    page.type("#source textarea", source)
    page.browser.execute_script(RECORD_STEPS)
    page.click("button#write")
    wait_for(lambda: page.all("#canvas .yan-clock b"), "last step")
    assert page.browser.execute_script("return steps") == ["noise", "step 1", "step 2", "step 3"]
    rows = [row.text for row in page.all("#canvas .yan-rows div > span")]
    assert rows[1:] == [" ".join(draft_text(draft).split()) for draft in written.drafts[1:]]
    tokens = [token.text for token in page.all("#canvas .yan-t")]
    assert tokens == [position.text.strip() for position in written.drafts[-1] if position.text.strip()]
    assert f"{written.answer_tokens} tokens in" in page.text("#canvas .yan-clock")
    # The colours are there, as many as experts, and others for confidence.
    color = "return getComputedStyle(document.querySelector('#canvas .yan-t')).backgroundColor"
    by_expert = page.browser.execute_script(color)
    assert len(page.all("#canvas .yan-k")) == 4
    page.click("#coloring label", "confidence")
    wait_for(lambda: page.all("#canvas .by-confidence"), "other colouring")
    assert page.browser.execute_script(color) not in (by_expert, "rgba(0, 0, 0, 0)")
    assert [token.text for token in page.all("#canvas .yan-t")] == tokens
    sources = page.browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert sources
    assert not [name for name in sources if not name.startswith(("http://127.0.0.1:", "data:", "blob:"))]


@pytest.mark.parametrize(
    ("source", "message"),
    [("", "source is empty"), ("☃" * 90, "this model reads at most 192; shorten it by")],
    ids=["empty", "too_long"],
)
def test_bad_input_is_told(page, source, message):
    page.type("#source textarea", source)
    page.click("button#write")
    assert message in wait_for(lambda: page.text("#canvas [role=alert]"), "error")
    page.open("Race")
    page.click("button#start")
    assert message in wait_for(lambda: page.text("#lanes [role=alert]"), "error in the race")


def test_an_example_fills_the_source(page):
    page.click("#examples button", "name[Aromi], eatType[coffee shop], area[city centre]")
    source = "return document.querySelector('#source textarea').value"
    wait_for(lambda: page.browser.execute_script(source).startswith("name[Aromi]"), "example in the source")
    page.click("button#write")
    wait_for(lambda: page.all("#canvas .yan-clock b"), "last step")
    assert "Aromi" in page.last_row()


def test_both_lanes_have_a_clock(page):
    page.open("Race")
    page.click("button#start")
    lanes = wait_for(lambda: len(page.all("#lanes .yan-lane")) == 2 and page.all("#lanes .yan-lane"), "lanes")
    assert ["YAN, 3 steps" in lanes[0].text, "tiny-bart" in lanes[1].text] == [True, True]
    assert all("ms" in lane.text and "eager torch" in lane.text and "median of" in lane.text for lane in lanes)


def test_selected_words_are_written_anew(page, writing):
    page.type("#source textarea", writing[0])
    page.open("Fill in")
    for word in ("food[Chinese],", "area[city"):
        page.click("#words label", word)
    page.click("button#fill")
    wait_for(lambda: page.all("#filled .yan-clock b"), "last step")
    assert page.all("textarea[readonly], textarea[disabled]")[-1].get_attribute("value") == (
        "name[Aromi], eatType[pub], <mask> centre]"
    )
    assert "Aromi" in page.last_row("#filled")
