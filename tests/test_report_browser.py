"""The report in a real browser: nothing complains, tables sort, the slider slides, phones fit."""

from dataclasses import replace

import pytest
from browser import Browser, find_browser
from report_runs import HOSTILE, measure, write_pictures, write_run

from vqkit.data import load_images
from vqkit.report import Run, read_run, write_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="no Chromium on this machine"),
]
LONG = "a_run_whose_name_is_" + "very_" * 12 + "long"


@pytest.fixture(scope="module")
def browser():
    with Browser(find_browser()) as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report of two whole runs, one of them with a hostile name, and one that has nothing."""
    folder = tmp_path_factory.mktemp("report")
    data = write_pictures(folder / "pictures")
    runs = []
    for seed, name in enumerate(("first", HOSTILE)):
        place = write_run(folder / f"run{seed}", data, name=name, seed=seed, num_codes=8 + 8 * seed)
        measure(place, data, name)
        runs.append(read_run(place))
    bare = Run(name=LONG, place=f"/{LONG}/" * 3, missing=("there is nothing.",))
    runs.append(replace(runs[0], name="unmeasured", evaluation=None))
    images = load_images(data)
    return write_report([*runs, bare], folder / "report.html", images=images, title=HOSTILE).path


def rows(browser, column):
    """What a column of the first table shows, from top to bottom."""
    cells = "[...document.querySelector('table.sortable').tBodies[0].rows].map(r => r.cells[{}])"
    script = f"({cells.format(column)}).map(c => c === undefined ? null : (c.dataset.v ?? null))"
    return browser.evaluate(script)


def test_nothing_complains_and_nothing_is_loaded(browser, page):
    browser.open(page)
    assert browser.evaluate("document.title") == HOSTILE
    assert browser.evaluate("document.documentElement.className") == "scripted"
    broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).length"
    assert browser.evaluate(broken) == 0
    assert browser.problems == []


def test_foreign_scripts_do_not_run(browser, page):
    """Even if a script came in, the page's policy refuses all but its own; the probe sees it."""
    browser.open(page)
    browser.evaluate(
        "{ const s = document.createElement('script'); s.textContent = 'window.hit = 1';"
        " document.body.append(s); }"
    )
    assert browser.evaluate("window.hit") is None
    assert len(browser.problems) == 1


def test_columns_sort_both_ways(browser, page):
    browser.open(page)
    click = "document.querySelectorAll('table.sortable thead th button')[{}].click()"
    psnr = browser.evaluate(
        "[...document.querySelectorAll('table.sortable')[0].tHead.rows[0].cells]"
        ".findIndex(c => c.textContent.startsWith('PSNR'))"
    )
    browser.evaluate(click.format(psnr))
    falling = rows(browser, psnr)
    known = [float(v) for v in falling if v is not None]
    assert known == sorted(known, reverse=True)
    assert len(known) == 2
    assert falling[2:] == [None, None], "what was not measured stays below"
    browser.evaluate(click.format(psnr))
    rising = rows(browser, psnr)
    assert [float(v) for v in rising[:2]] == sorted(known)
    assert rising[2:] == [None, None]
    browser.evaluate(click.format(0))
    names = rows(browser, 0)
    assert names.index("first") < names.index("unmeasured")
    heads = "[...document.querySelectorAll('th[aria-sort]')].map(h => h.ariaSort)"
    assert browser.evaluate(heads) == ["ascending"]
    assert browser.problems == []


def state(browser):
    """Position of the border in percent, as the picture and as the slider have it."""
    return browser.evaluate(
        "[getComputedStyle(document.querySelector('.stage')).getPropertyValue('--cut'),"
        " document.querySelector('.cut').value]"
    )


def test_the_slider_slides_by_mouse_and_by_key(browser, page):
    browser.open(page)
    browser.evaluate("document.querySelector('.compare').scrollIntoView({behavior: 'instant'})")
    assert state(browser) == ["50%", "50"]
    left, top, width, height = browser.evaluate(
        "(b => [b.x, b.y, b.width, b.height])"
        "(document.querySelector('.stage').getBoundingClientRect())"
    )
    y = top + height / 2
    browser.drag((left + width / 2, y), (left + width / 4, y))
    assert state(browser) == ["25%", "25"]
    browser.evaluate("document.querySelector('.cut').focus()")
    browser.press("ArrowRight", 39)
    assert state(browser) == ["26%", "26"]
    assert browser.problems == []


def test_any_two_versions_of_any_picture_are_compared(browser, page):
    browser.open(page)
    sources = "[...document.querySelectorAll('.stage img')].map(i => i.src)"
    version = "document.querySelectorAll('.strip')[{}].querySelector('[data-version=\"{}\"]').src"
    original, first = (browser.evaluate(version.format(0, i)) for i in (0, 1))
    assert browser.evaluate(sources) == [original, first]
    choose = (
        "{{ const s = document.querySelector('select[data-side={}]'); s.value = {};"
        " s.dispatchEvent(new Event('change')); }}"
    )
    browser.evaluate(choose.format("left", 2))
    browser.evaluate(choose.format("right", 0))
    second = browser.evaluate(version.format(0, 2))
    assert browser.evaluate(sources) == [second, original]
    browser.evaluate("document.querySelectorAll('.thumbs button')[2].click()")
    expected = [browser.evaluate(version.format(2, i)) for i in (2, 0)]
    assert browser.evaluate(sources) == expected
    visible = "[...document.querySelectorAll('.strip')].map(s => s.offsetHeight > 0)"
    assert browser.evaluate(visible) == [False, False, True]
    assert HOSTILE in browser.evaluate("document.querySelector('.said').textContent")
    assert browser.problems == []


def test_drawings_answer_to_the_keyboard(browser, page):
    browser.open(page)
    tip = "(t => t.hidden ? null : t.textContent)(document.querySelector('.tip'))"
    browser.evaluate("document.querySelector('.point').focus()")
    assert "first: PSNR" in browser.evaluate(tip)
    browser.evaluate("document.querySelector('.point').blur()")
    assert browser.evaluate(tip) is None
    browser.evaluate("document.querySelector('#training svg.curves').focus()")
    browser.press("ArrowLeft", 37)
    shown = browser.evaluate(tip).splitlines()
    assert shown[0] == "optimizer step 40"
    assert shown[1] == "first: 0.25"
    assert browser.problems == []


def test_drawings_answer_to_a_finger(browser, page):
    browser.open(page, width=390, height=844)
    tip = "(t => t.hidden ? null : t.textContent)(document.querySelector('.tip'))"
    place = (
        "(e => {{ e.scrollIntoView({{behavior: 'instant', block: 'center'}});"
        " const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; }})"
        "(document.querySelector('{}'))"
    )
    browser.tap(*browser.evaluate(place.format(".point .halo")))
    assert "first: PSNR" in browser.evaluate(tip)
    browser.tap(*browser.evaluate(place.format("h1")))
    assert browser.evaluate(tip) is None
    browser.tap(*browser.evaluate(place.format("#training svg.curves")))
    assert browser.evaluate(tip).startswith("optimizer step")
    assert browser.problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_the_page_fits(browser, page, width, scheme):
    browser.open(page, width=width, height=800, scheme=scheme)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    apart = ".scroll, nav, svg, .unseen"
    wide = (
        f"[...document.querySelectorAll('body *')].filter(e => !e.closest('{apart}')"
        " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 90))"
    )
    assert browser.evaluate(wide) == []
    assert browser.problems == []


def test_schemes_differ_and_can_be_read(browser, page):
    found = {}
    for scheme in ("light", "dark"):
        browser.open(page, scheme=scheme)
        style = "getComputedStyle(document.body)"
        found[scheme] = [
            browser.evaluate(f"{style}.{name}") for name in ("backgroundColor", "color")
        ]
        paper, ink = (luminance(colour) for colour in found[scheme])
        contrast = (max(paper, ink) + 0.05) / (min(paper, ink) + 0.05)
        assert contrast > 7  # WCAG AAA for text
    assert found["light"] != found["dark"]


def luminance(colour):
    """Relative luminance of `rgb(r, g, b)` (WCAG 2)."""
    channels = [int(v) / 255 for v in colour[4:-1].split(",")]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in channels]
    return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_it_prints(browser, page, tmp_path):
    browser.open(page)
    browser.print(tmp_path / "page.pdf")
    content = (tmp_path / "page.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    browser.send("Emulation.setEmulatedMedia", media="print")
    hidden = "['nav', '.compare', '.thumbs'].map(s => document.querySelector(s).offsetHeight)"
    assert browser.evaluate(hidden) == [0, 0, 0]
    shown = "[...document.querySelectorAll('.strip')].every(s => s.offsetHeight > 0)"
    assert browser.evaluate(shown) is True
    browser.send("Emulation.setEmulatedMedia", media="")
