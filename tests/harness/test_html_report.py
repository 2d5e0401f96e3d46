"""The pages in a browser: they draw, answer to pointer and keys, and fit a phone."""

import base64
import io
import os
import shutil

import numpy as np
import pytest
from matplotlib.image import imread

from experiments.charlm import activations
from experiments.harness.html_report import embed, write_page
from experiments.imdb import attribution

pytestmark = pytest.mark.slow

sync_api = pytest.importorskip("playwright.sync_api")

BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")
HOSTILE = "</script><script>document.title='run'</script><!--<b>&amp;"

TEMPLATES = {"explanation": attribution.TEMPLATE, "neurons": activations.TEMPLATE}


def pack(numbers, dtype):
    return base64.b64encode(np.array(numbers, dtype).tobytes()).decode()


REVIEW = {
    "pieces": [["", "Fine"], [f" {HOSTILE} ", "dull"], [", ", "zyzx"]],
    "rest": "!\n",
    "unknown": [False, False, True],
    "number": 1,
    "label": "positive",
    "target": "positive",
    "against": "negative",
    "attributions": [2.0, -1.0, 0.25],
    "baseline": -0.25,
    "logit": 1.0625,
    "residual": 0.0625,
    "steps": 64,
    "probability": 0.743,
    "forward": [0.9, 0.4, 0.743],
    "backward": [0.743, 0.3, 0.5],
}
EXPLANATION = {
    "model": HOSTILE,
    "ends": ["negative", "positive"],
    "reviews": [REVIEW, REVIEW | {"number": 2, "label": "negative"}],
}
# Three units of "ab<\n"; of the four characters the two likeliest are told.
UNITS = {
    "model": HOSTILE,
    "bytes": False,
    "characters": ["a", "b", "<", "\n"],
    "tokens": ["a", "b", "<", "\n"],
    "units": [{"layer": a, "unit": b} for a, b in [(0, 7), (1, 3), (0, 2)]],
    "of": 9,
    "lag": 10,
    "values": pack([127, -127, 0, 64, 0, 64, -127, 0, -16, -16, 16, 127], "i1"),
    "vocabulary": ["\n", "<", "a", "b"],
    "likeliest": pack([3, 2, 0, 1, 0, 1, 2, 3], "<u4"),
    "probabilities": pack([0.75 * 65535, 0.125 * 65535, *[0.5 * 65535, 0] * 3], "<u2"),
    "following": pack([0.75 * 65535, 0, 0.5 * 65535], "<u2"),
}  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    names = filter(None, map(shutil.which, BROWSERS))
    path = next(names, None)
    if path is None:
        message = "there is no chromium: install Debian's chromium-headless-shell"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    root = ["--no-sandbox"] if os.geteuid() == 0 else []  # else it will not start
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path, args=root)


@pytest.fixture
def visit(browser, tmp_path):
    """Opens the page of some data; whatever it complains of or asks for fails."""
    complaints, contexts = [], []

    def open_page(kind, data, **options):
        path = tmp_path / f"{kind}.html"
        write_page(path, TEMPLATES[kind], HOSTILE, data)
        contexts.append(browser.new_context(offline=True, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: complaints.append(asked.url))
        page.goto(path.as_uri())
        assert complaints.pop(0) == path.as_uri()
        assert page.title() == HOSTILE
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def shades(page, selector):
    """The first class of each of these elements, and whether it looks its part."""
    found = page.locator(selector).evaluate_all(
        """spans => spans.map(span => {
            const style = getComputedStyle(span);
            return [span.classList[0], style.borderBottomStyle, style.backgroundColor];
        })"""
    )
    for name, line, colour in found:
        assert line == {"m": "solid", "l": "dotted", "n": "none"}[name[0]]
        assert (colour == "rgba(0, 0, 0, 0)") == (name == "none")
    return [name for name, *_ in found]


def test_units_are_flipped_by_button_key_and_slider(visit):
    page = visit("neurons", UNITS)
    assert page.locator("#text").inner_text() == "ab<\u21b5\n"
    assert page.locator("#unit").inner_text() == "Unit 7 of layer 0\nrank 1 of 3"
    assert shades(page, "#text span") == ["more8", "less8", "none", "more4"]
    assert page.locator("#before").is_disabled()

    page.locator("#after").click()
    assert page.locator("#unit").inner_text() == "Unit 3 of layer 1\nrank 2 of 3"
    assert shades(page, "#text span") == ["none", "more4", "less8", "none"]

    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")  # there are no more
    assert page.locator("#unit").inner_text() == "Unit 2 of layer 0\nrank 3 of 3"
    assert shades(page, "#text span") == ["less1", "less1", "more1", "more8"]
    assert page.locator("#after").is_disabled()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#slider").input_value() == "2"

    page.locator("#slider").focus()
    page.keyboard.press("Home")
    assert page.locator("#unit").inner_text().startswith("Unit 7 of layer 0")


def next_characters(page):
    return [row.split() for row in page.locator("#next li").all_inner_texts()]


def test_what_comes_next_is_told_where_one_points(visit):
    page = visit("neurons", UNITS)
    assert next_characters(page) == [["b", "75.0", "%"], ["a", "12.5", "%"]]
    assert page.locator("#next .true").inner_text().split()[0] == "b"
    page.locator("#text span").nth(1).hover()
    assert page.locator("#context").inner_text() == "After ab (\u22121.00) comes"
    assert next_characters(page)[1] == ["<", "<", "0.1", "%"]
    assert page.locator("#next .true code").inner_text() == "<"
    page.keyboard.press("Shift+ArrowRight")
    assert page.locator("#context").inner_text() == "After ab< (+0.00) comes"
    assert page.locator("#next .true").inner_text().split() == ["\u21b5", "50.0", "%"]
    page.keyboard.press("Shift+ArrowRight")  # the end: nothing is known to come
    assert page.locator("#next .true").count() == 0
    page.keyboard.press("Home")
    assert page.locator("#context").inner_text() == "After a (+1.00) comes"
    page.keyboard.press("PageDown")  # farther than there is text
    assert page.locator("#next .true").count() == 0
    assert page.locator("#unit").inner_text().startswith("Unit 7 of layer 0")


def test_bytes_are_spelled(visit):
    characters = ["\0", "\xc3", "\x7f", " "]
    page = visit(
        "neurons",
        UNITS | {"bytes": True, "characters": characters, "tokens": characters},
    )
    assert page.locator("#text").inner_text() == "\u2400\\xc3\u2421 "


def test_words_tell_what_they_did(visit):
    page = visit("explanation", EXPLANATION | {"model": HOSTILE})
    assert page.locator("#model").inner_text() == HOSTILE
    first = page.locator(".review").first
    assert first.locator(".words").inner_text() == f"Fine {HOSTILE} dull, zyzx!\n"
    assert shades(first, ".word") == ["more8", "less4", "more1"]
    assert first.locator(".verdict").inner_text().split() == ["positive", "74.3", "%"]
    told = "= +1.00; the model\u2019s log-odds of positive are +1.06 (residual +0.0625,"
    assert told in first.locator(".sum").inner_text()
    names = first.locator(".strongest .name").all_inner_texts()
    assert names == ["Fine", "dull", "zyzx"]

    told = first.locator(".told")
    first.locator(".word").nth(1).hover()
    assert told.inner_text() == (
        "dull \u22121.00 towards negative\n"
        "probability of positive up to here 40.0\xa0%, from here on 30.0\xa0%"
    )
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert told.inner_text().startswith("zyzx (unknown to the model) +0.25")
    page.keyboard.press("Home")
    assert told.inner_text().startswith("Fine +2.00 towards positive")
    box = first.locator(".chart").bounding_box()
    page.mouse.click(box["x"] + 0.5 * box["width"], box["y"] + 20)
    assert told.inner_text().startswith("dull")
    other = page.locator(".review").nth(1).locator(".told").inner_text()
    assert other.startswith("Point at a word")


def test_print_shows_every_verdict(visit):
    """What follows the pointer would lie over them, at the bottom of each sheet."""
    page = visit("explanation", EXPLANATION)
    assert page.locator(".told").first.is_visible()
    page.emulate_media(media="print")
    assert page.locator(".told:visible").count() == 0
    assert page.locator(".verdict:visible").count() == 2
    fixed = page.evaluate(
        """() => [...document.querySelectorAll("*")].filter(element => {
            const { display, position } = getComputedStyle(element);
            return display !== "none" && ["sticky", "fixed"].includes(position);
        }).length"""
    )
    assert fixed == 0
    exact = "elements => elements.map(e => getComputedStyle(e).printColorAdjust)"
    assert set(page.locator(".word").evaluate_all(exact)) == {"exact"}


def test_lines_are_the_running_probabilities(visit):
    page = visit("explanation", EXPLANATION)
    forward = page.locator("path.forward").first.get_attribute("d")
    points = [float(part.split()[1].split("H")[0]) for part in forward[1:].split("L")]
    assert [1 - y for y in points] == pytest.approx(REVIEW["forward"])


def picture(thing):
    """What one sees of it: rows, columns, and red, green and blue from 0 to 1."""
    return imread(io.BytesIO(thing.screenshot()), format="png")[..., :3]


def luminance(colours):
    """As WCAG defines it, of sRGB from 0 to 1."""
    linear = np.where(
        colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4
    )
    return linear @ np.array([0.2126, 0.7152, 0.0722])


LONG = {**REVIEW, "pieces": [[" ", "word" * 40], *REVIEW["pieces"][1:]]}


@pytest.mark.parametrize(
    ("kind", "data", "thing"),
    [
        ("explanation", EXPLANATION | {"reviews": [LONG]}, ".word"),
        ("neurons", UNITS, "#text span"),
    ],
)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it(visit, kind, data, thing, scheme):
    phone = {"width": 360, "height": 640}
    page = visit(kind, data, viewport=phone, has_touch=True, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.locator(thing).nth(1).tap()
    assert "current" in page.locator(thing).nth(1).get_attribute("class")
    red = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]"
    )
    assert int(red) > 240 if scheme == "light" else int(red) < 40
    shot = picture(page)
    assert shot.shape[:2] == (640, 360)
    colours, counts = np.unique(shot.reshape(-1, 3), axis=0, return_counts=True)
    assert len(colours) > 20  # letters, their smooth edges, shades and lines
    paper = colours[counts.argmax()]
    assert paper.min() > 0.97 if scheme == "light" else paper.max() < 0.15
    ink, ground = luminance(picture(page.locator("h1"))), luminance(paper)
    contrast = (np.maximum(ink, ground) + 0.05) / (np.minimum(ink, ground) + 0.05)
    assert contrast.max() >= 7  # of text for everybody: WCAG's level AAA


def test_on_paper_nothing_covers_the_text(visit):
    page = visit("neurons", UNITS)
    positions = "things => things.map(x => getComputedStyle(x).position)"
    sticky = page.locator(".tools, aside")
    assert sticky.evaluate_all(positions) == ["sticky", "sticky"]
    page.emulate_media(media="print")
    assert sticky.evaluate_all(positions) == ["static", "static"]
    style = "getComputedStyle(document.body)"
    exact = f"{style}.printColorAdjust || {style}.webkitPrintColorAdjust"
    assert page.evaluate(exact) == "exact"  # else shades would not be printed


def test_nothing_ends_the_data():
    assert "<" not in embed([HOSTILE, "\u2028"])
    with pytest.raises(ValueError, match="not JSON compliant"):
        embed(float("nan"))


def test_a_page_that_cannot_be_written(tmp_path):
    path = tmp_path / "none" / "out.html"
    with pytest.raises(
        ValueError, match=f"cannot write to {path} .No such file .* --html"
    ):
        write_page(path, TEMPLATES["neurons"], "", UNITS)
