"""The pages of `--serve` in a browser, with a trained model behind them."""

import math
import time

import pytest

from experiments.charlm import serve as charlm_serve
from experiments.charlm.generator import Writer
from experiments.imdb import serve as imdb_serve
from experiments.imdb.predictor import Reader
from tests.harness.local_server import served
from tests.imdb.test_attribution import save_untrained

pytestmark = pytest.mark.slow

sync_api = pytest.importorskip("playwright.sync_api")

# After what skips: the fixture starts a browser, or says that there is none.
from tests.harness.test_html_report import browser, picture  # noqa: E402, F401

SUM = "8+6=14. "
HOSTILE = "</script><b>Model</b>"


@pytest.fixture(scope="module")
def writing(charlm_smoke):
    writer = Writer.load(charlm_smoke[0])
    service = charlm_serve.Service(writer, HOSTILE)
    with served(service.app, service.close) as address:
        yield address, writer, service


@pytest.fixture(scope="module")
def classifying(tmp_path_factory):
    path = save_untrained(tmp_path_factory.mktemp("run"))
    service = imdb_serve.Service(Reader.load(path, devices=1), HOSTILE)
    with served(service.app, service.close) as address:
        yield address


@pytest.fixture
def visit(browser):  # noqa: F811
    """Opens a page; whatever it complains of, or asks of another host, fails."""
    complaints, contexts = [], []

    def open_page(address, **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda asked: asked.url.startswith(address) or complaints.append(asked.url),
        )
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def slide(page, name, value):
    page.locator(f"#{name}").evaluate(
        """(slider, value) => {
            slider.value = value;
            slider.dispatchEvent(new Event("input"));
        }""",
        str(value),
    )


def wait_until(page, expression):
    """Playwright's own wait evaluates strings in the page, whose policy forbids it."""
    deadline = time.monotonic() + 60
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(20)


def wait_for_the_end(page):
    wait_until(page, "document.getElementById('stop').disabled")


def drawn(pane):
    """The characters of a text, as they were written."""
    return "".join(
        pane.locator(".drawn").evaluate_all("spans => spans.map(s => s.character)")
    )


def test_two_temperatures_write_side_by_side(visit, writing):
    address, writer, _ = writing
    page = visit(address)
    assert page.locator("#model").inner_text() == HOSTILE
    page.locator("#prompt").fill(SUM)
    for name, value in (("seed", 7), ("length", 150), ("temperature2", 1.5)):
        slide(page, name, value)
    slide(page, "top_p", 0.9)
    slide(page, "min_p", 0.02)
    page.locator("#write").click()
    wait_until(page, "document.querySelectorAll('.drawn').length === 300")
    wait_for_the_end(page)
    panes = page.locator(".pane")
    assert panes.locator("h2").all_inner_texts() == [
        "Temperature 0.5",
        "Temperature 1.5",
    ]
    options = {"top_p": 0.9, "min_p": 0.02}
    for k, temperature in enumerate((0.5, 1.5)):
        pieces = writer.write(SUM, 150, 1, 7, temperature=temperature, **options)
        assert drawn(panes.nth(k)) == "".join(piece for [piece] in pieces)
    assert page.locator("#told").inner_text() == ""


def test_characters_have_the_colour_of_their_probability(visit, writing):
    page = visit(writing[0])
    page.locator("#prompt").fill(SUM)
    page.locator("#both").uncheck()
    slide(page, "temperature", 2)
    page.locator("#write").click()
    wait_until(page, "document.querySelectorAll('.drawn').length === 400")
    wait_for_the_end(page)
    found = page.locator(".drawn").evaluate_all(
        "spans => spans.map(s => [s.classList[0], s.probability])"
    )
    levels = set()
    for name, probability in found:
        bits = min(8, -math.log2(max(probability, 1e-4)))
        level = 0 if name == "none" else int(name.removeprefix("less"))
        assert abs(level - bits) <= 0.5 + 1e-6
        levels.add(level)
    assert len(levels) > 5
    improbable = page.locator(".less8, .less7, .less6").first
    background = improbable.evaluate("s => getComputedStyle(s).backgroundColor")
    assert background.startswith("rgba(214, 112, 16")


def test_alternatives_at_the_cursor(visit, writing):
    page = visit(writing[0])
    page.locator("#both").uncheck()
    page.locator("#prompt").fill(SUM)
    slide(page, "length", 50)
    page.locator("#write").click()
    wait_for_the_end(page)
    page.locator(".drawn").nth(3).hover()
    shown = page.locator(".current").evaluate("s => s.alternatives")
    shares = [share for _, share in shown]
    assert shares == sorted(shares, reverse=True)
    assert len(shares) == 5
    assert page.locator("#next li").count() >= 5
    assert page.locator("#next .true").count() == 1
    chosen = page.locator(".current").evaluate("s => s.character")
    [told] = page.locator("#next .true code").all_inner_texts()
    assert told == {" ": "\u2423", "\n": "\u21b5"}.get(chosen, chosen)
    page.locator(".text").focus()
    page.keyboard.press("ArrowRight")
    fourth = page.locator(".drawn").nth(4)
    assert "current" in fourth.get_attribute("class")
    page.keyboard.press("Home")
    assert "current" in page.locator(".drawn").first.get_attribute("class")


def test_a_text_is_stopped(visit, writing):
    """And its slot is free."""
    address, _, service = writing
    page = visit(address)
    slide(page, "length", 2000)
    page.locator("#write").click()
    page.wait_for_selector(".drawn")
    page.locator("#stop").click()
    wait_for_the_end(page)
    page.wait_for_timeout(100)
    assert service._gate.inside == 0
    assert page.locator("#told").inner_text() in ("stopped", "")


def test_a_refusal_is_shown(visit, writing):
    page = visit(writing[0])
    page.locator("#prompt").fill("é")
    page.locator("#write").click()
    wait_for_the_end(page)
    assert page.locator("#told").inner_text() == (
        "the prompt has characters outside the model's vocabulary, 'é': leave them out"
    )


def test_verdict_and_colours_follow_what_is_typed(visit, classifying):
    page = visit(classifying)
    assert page.locator("#model").inner_text() == HOSTILE
    page.locator("#text").press_sequentially("A good film, don't see zyzx", delay=20)
    page.wait_for_selector(".word.unknown")
    assert page.locator("#words").inner_text() == "A good film, don't see zyzx"
    words = page.locator(".word")
    assert words.all_inner_texts() == ["A", "good", "film", "don't", "see", "zyzx"]
    names = words.evaluate_all("spans => spans.map(s => s.classList[0])")
    assert "more8" in names or "less8" in names
    assert page.locator("#label").inner_text() in ("negative", "positive")
    assert page.locator("#probability").inner_text().endswith("%")
    words.nth(5).hover()
    told = page.locator("#told").inner_text()
    assert told.startswith("zyzx (unknown to the model) ")
    page.locator("#text").fill(" ")
    wait_until(page, "document.querySelectorAll('.word').length === 0")
    assert page.locator("#label").inner_text() == ""


def test_a_text_without_words_is_told(visit, classifying):
    page = visit(classifying)
    page.locator("#text").fill("?!")
    wait_until(
        page, "document.getElementById('told').textContent === 'text has no words'"
    )


@pytest.mark.parametrize("which", ["writing", "classifying"])
def test_pages_fit_a_phone(visit, which, request):
    found = request.getfixturevalue(which)
    address = found if isinstance(found, str) else found[0]
    page = visit(address, viewport={"width": 360, "height": 740})
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 360
    assert picture(page).std() > 0.01
