"""The book's pages in a real browser: what a reader's screen, keyboard and screen reader meet.

`look` opens a page and notes everything that is wrong with it. Each of its checks is seen to fail on a page of faults.
"""

import base64
import html
import io
import json
import re
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit
from urllib.request import url2pathname

import numpy as np
import pytest
from PIL import Image

from thesis_lib import explore

pytestmark = pytest.mark.minutes
ROOT = Path(__file__).resolve().parent.parent

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 420, "height": 860}
EXPLORE = "notebooks/00_explore.html"
KINDS = ["curve", "methods", "scales", "groups", "window"]
# Pages whose code and formulas axe looks at as well (elsewhere they are left out: they look the same, and there are many).
WHOLE = {"notebooks/03_1_method.html", EXPLORE}
DARK = [
    "book/intro.html",
    EXPLORE,
    "notebooks/03_1_method.html",
    "notebooks/03_4_pointing_game.html",
    "notebooks/05_2_ledger.html",
    "book/references.html",
]
# Faults of the theme that cannot be mended from here: (rule, part of the selector): why. None is left.
KNOWN = {}

IMAGES = """() => [...document.images].filter(i => !i.alt.trim() || !i.complete || !i.naturalWidth)
    .map(i => `${i.alt.trim() ? "broken" : "no alt"}: ${i.src.slice(0, 60)}`)"""
# Formulas that MathJax has left alone or marked as wrong, and dollars and brackets left over in the text.
FORMULAS = r"""() => {
    const wrong = [...document.querySelectorAll(".math")].filter(m => !m.querySelector("mjx-container")).map(m => m.textContent);
    wrong.push(...[...document.querySelectorAll("mjx-merror, [data-mjx-error]")].map(m => "error: " + m.textContent));
    const walker = document.createTreeWalker(document.querySelector("main") || document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const { data, parentElement } = walker.currentNode;
        if (parentElement.closest("pre, code, script, style, mjx-container, .math")) continue;
        if (/\$[^$\n]*[\\^_{][^$\n]*\$|\$\$|\\\(|\\\[|\\begin\{/.test(data)) wrong.push("in the text: " + data.trim());
    }
    return wrong;
}"""
# What sticks out to the right, unless something around it scrolls or cuts it off. (The theme parks its drawers there.)
WIDE = """() => [document.documentElement, ...document.querySelectorAll("article *")].filter(e => {
    if (e === document.documentElement) return e.scrollWidth > innerWidth;
    const box = e.getBoundingClientRect();
    if (box.right <= innerWidth + 1 || !box.width || !box.height) return false;
    for (let p = e.parentElement; p; p = p.parentElement) if (getComputedStyle(p).overflowX !== "visible") return false;
    return true;
}).map(e => `${e.tagName} ${e.className}`)"""
SETTLED = """async () => {
    await window.MathJax?.startup?.promise;
    const waiting = () => [...document.querySelectorAll(".explore")].some(e => !e.dataset.ready);
    // Colours in transition are no colours of the page.
    const moving = () => document.getAnimations().some(a => a.playState === "running");
    for (let i = 0; i < 100 && (waiting() || moving()); i++) await new Promise(done => setTimeout(done, 50));
}"""
# How far down a page they begin: the first figure, the first code (folded or not), the first thing that a cell wrote.
ORDER = """() => Object.fromEntries([
    ["figure", ".bd-article figure img, .bd-article .explore"], ["code", ".cell_input"], ["output", ".cell_output"],
].map(([name, where]) => {
    const found = [...document.querySelectorAll(where)].map(e => (e.closest("details") || e).getBoundingClientRect().top);
    return [name, found.length ? Math.min(...found) + scrollY : null];
}))"""
CHECKS = ["console", "requests", "images", "formulas", "accessibility", "wide"]


def violations(page, whole=True, only=None):
    """Axe's serious and critical findings, but for the known ones: rule and selector.

    Text in the very colour of its ground counts too; axe only asks for a closer look at it.
    """
    options = {
        "resultTypes": ["violations", "incomplete"],
        "preload": False,
    }  # preload asks for style sheets again
    if only:
        options["runOnly"] = {"type": "rule", "values": only}
    context = None if whole else {"exclude": [["mjx-container"], [".highlight"]]}
    response = axe.Axe().run(page, context=context, options=options).response
    unseen = [
        fault | {"nodes": [node for node in fault["nodes"] if "equalRatio" in json.dumps(node["any"])]}
        for fault in response["incomplete"]
    ]
    return [
        f"{fault['id']}: {selector}"
        for fault in response["violations"] + unseen
        for node in fault["nodes"]
        if fault["impact"] in ("serious", "critical")
        and (selector := " ".join(map(str, node["target"])))
        and not any(rule == fault["id"] and part in selector for rule, part in KNOWN)
    ]


def look(browser, path, folder, whole=True):
    """Open one page as on a desk and as on a phone: {check: what is wrong}, and its links and anchors."""
    seen = {check: [] for check in CHECKS}
    page = browser.new_page(viewport=DESKTOP)
    page.on("console", lambda message: message.type == "error" and seen["console"].append(message.text))
    page.on("pageerror", lambda error: seen["console"].append(str(error)))

    def asked(request):
        if not request.url.startswith((folder.as_uri(), "data:", "blob:")):
            seen["requests"].append(request.url)

    page.on("request", asked)
    page.goto(path.as_uri())
    page.evaluate(SETTLED)
    seen["images"] = page.evaluate(IMAGES)
    seen["formulas"] = page.evaluate(FORMULAS)
    seen["accessibility"] = violations(page, whole)
    seen["links"] = page.evaluate("() => [...document.querySelectorAll('a[href]')].map(a => a.href)")
    seen["ids"] = page.evaluate(
        "() => [...document.querySelectorAll('[id], a[name]')].map(e => e.id || e.name)"
    )
    seen["computed"] = page.evaluate(
        "() => [...document.querySelectorAll('.cell figure[id]')].map(f => f.id)"
    )
    seen["sources"] = page.evaluate(
        "() => [...document.querySelectorAll('a.figure-source')].map(a => a.hash.slice(1))"
    )
    seen["order"] = page.evaluate(ORDER)
    seen["figures"] = page.evaluate("() => document.querySelectorAll('.explore[data-ready]').length")
    seen["set"] = page.evaluate("() => document.querySelectorAll('mjx-container').length")
    page.set_viewport_size(PHONE)
    seen["wide"] = page.evaluate(WIDE)
    page.close()
    return seen


def broken(looks, folder):
    """Links into the folder of the pages whose file or anchor is missing, and links to files elsewhere."""
    wrong = []
    for path, seen in looks.items():
        for link in seen["links"]:
            address, anchor = urldefrag(link)
            if urlsplit(address).scheme != "file":
                continue
            target = type(path)(url2pathname(urlsplit(address).path))
            if (
                not target.is_file()
                or not target.is_relative_to(folder)
                or anchor
                and target in looks
                and unquote(anchor) not in looks[target]["ids"]
            ):
                wrong.append(f"{path.name}: {link}")
    return wrong


@pytest.fixture(scope="module")
def looks(browser, site):
    """What was seen of every page."""
    paths = [*site.glob("book/*.html"), *site.glob("notebooks/*.html"), site / "search.html"]
    assert len(paths) > 10
    return {p: look(browser, p, site, p.relative_to(site).as_posix() in WHOLE) for p in sorted(paths)}


# Every page


def test_computed_figures_link_to_their_cells(looks):
    for path, seen in looks.items():
        assert len(seen["sources"]) == len(seen["computed"]) and {*seen["sources"]} <= {*seen["ids"]}, (
            path.name
        )
    assert sum(len(seen["computed"]) for seen in looks.values()) > 40


def test_a_reader_meets_a_figure_soon_and_what_rows_say_before_code(looks):
    """The first figure within a screen and a half; where cells are tagged `opening`, their outputs before any code."""
    late = {
        p.name: y
        for p, seen in looks.items()
        if (y := seen["order"]["figure"] or 0) > 1.5 * DESKTOP["height"]
    }
    assert not late
    opened = 0
    for path, seen in looks.items():
        notebook = ROOT / "notebooks" / f"{path.stem}.ipynb"
        if notebook.exists() and '"opening"' in notebook.read_text("utf-8"):
            assert seen["order"]["output"] < seen["order"]["code"], path.name
            opened += 1
    assert opened > 10


@pytest.mark.parametrize("name", ["notebooks/03_4_pointing_game.html"])
def test_a_figure_is_enlarged_by_click_and_by_key(browser, site, name):
    page = browser.new_page(viewport=DESKTOP)
    page.goto((site / name).as_uri())
    page.evaluate(SETTLED)
    small = page.locator(".bd-article figure img").first.bounding_box()
    large = page.locator("dialog.enlarged img")
    for opens in (page.locator(".bd-article figure img").first.click, lambda: page.keyboard.press("Enter")):
        opens()
        assert large.bounding_box()["width"] > 1.2 * small["width"]
        page.keyboard.press("Escape")
        large.wait_for(state="hidden", timeout=5000)
        page.locator("button.enlarge").first.focus()
    page.close()


@pytest.mark.parametrize("check", CHECKS)
def test_pages(looks, check):
    assert not {path.name: seen[check] for path, seen in looks.items() if seen[check]}


def test_formulas_and_figures_are_there(looks, site):
    assert looks[site / "book/notation.html"]["set"] > 50
    assert looks[site / EXPLORE]["figures"] == len(KINDS)


def test_links_and_anchors_hold(looks, site):
    assert not broken(looks, site)


@pytest.mark.parametrize("name", DARK)
def test_text_is_legible_in_the_dark(browser, site, name):
    page = browser.new_page(viewport=DESKTOP, color_scheme="dark")
    page.goto((site / name).as_uri())
    page.evaluate(SETTLED)
    assert page.evaluate("() => document.documentElement.dataset.theme") == "dark"
    assert not violations(page, name in WHOLE, ["color-contrast"])
    page.close()


# Interactive figures


@pytest.fixture(scope="module")
def explored(browser, site):
    page = browser.new_page(viewport=PHONE, has_touch=True)
    page.goto((site / EXPLORE).as_uri())
    page.evaluate(SETTLED)
    yield page
    page.close()


@pytest.fixture
def fresh(explored):
    explored.reload()
    explored.evaluate(SETTLED)
    return explored


def state(figure):
    """The text of a figure's values, and all that it draws."""
    drawing = "e => [...e.querySelectorAll('canvas')].map(c => c.toDataURL()).join() + [...e.querySelectorAll('svg')].map(s => s.innerHTML).join()"
    return figure.locator("output").inner_text(), figure.evaluate(drawing)


def changes(figure, act):
    """What an action changed: (the text, the drawing)."""
    before = state(figure)
    act()
    return tuple(a != b for a, b in zip(before, state(figure), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_figure_answers_keys_clicks_and_taps(fresh, kind):
    figure = fresh.locator(f"[data-explore={kind}]")
    assert not figure.locator("img").count()  # the still picture has made room
    assert figure.locator("output").inner_text().strip()
    both = (True, True)

    sliders = figure.locator("input[type=range]")
    assert sliders.count() == 1
    sliders.focus()
    spoken = sliders.get_attribute("aria-valuetext")
    moved = changes(figure, lambda: fresh.keyboard.press("ArrowRight"))
    assert moved == both if kind != "methods" else moved[1]  # there it fades the map, and no value changes
    assert sliders.get_attribute("aria-valuetext") != spoken
    assert changes(figure, lambda: figure.get_by_role("button", name="back").tap())[1]
    assert changes(figure, lambda: figure.get_by_role("button", name="forward").click())[1]

    for select in figure.locator("select").all():
        options = select.locator("option").all_inner_texts()
        assert len(options) > 1
        assert changes(figure, lambda: choose(select, 1))[1], options

    for canvas in figure.locator("canvas[tabindex]").all():
        canvas.focus()
        assert fresh.evaluate("() => document.activeElement.tagName") == "CANVAS"
        for key in ("ArrowDown", "ArrowLeft"):
            assert changes(figure, lambda: fresh.keyboard.press(key)) == both, key
        box = canvas.bounding_box()
        place = {"x": 0.9 * box["width"], "y": 0.9 * box["height"]}
        assert changes(figure, lambda: canvas.tap(position=place)) == both
    for plot in figure.locator("svg").all():
        box = plot.bounding_box()
        assert (
            changes(figure, lambda: plot.tap(position={"x": 0.7 * box["width"], "y": 0.5 * box["height"]}))
            == both
        )


def test_every_control_of_a_figure_has_a_name(fresh):
    for control in fresh.locator(".explore :is(input, select, button, canvas, svg)").all():
        text = control.evaluate("e => e.getAttribute('aria-label') || e.labels?.[0]?.textContent || ''")
        assert text.strip(), control


def data_of(site, kind):
    text = re.search(
        rf"data-explore=\"{kind}\" data-figure='(.*?)'>", (site / EXPLORE).read_text("utf-8"), re.S
    )[1]
    return json.loads(html.unescape(text))


def photograph_of(site, figure):
    """The data of the photograph that a figure shows, from beside the pages."""
    name = figure.get_by_role("combobox", name="Photograph").input_value()
    return explore.load(name, site / "_static/explore")


def choose(select, k):
    """Choose entry k of a list, and wait until what it names has come."""
    select.select_option(index=k)
    select.and_(select.page.locator("[aria-busy=true]")).wait_for(state="detached")


def decoded(address):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))))


def drawn(figure, k):
    """The pixels of a figure's canvas number k, (H, W, 3)."""
    address = figure.evaluate(f"e => e.querySelectorAll('canvas')[{k}].toDataURL()")
    return decoded(address)[..., :3].astype(int)


def coloured(data, values):
    """What a sum of maps looks like: stretched, in the colours of saliency."""
    colours = np.frombuffer(bytes.fromhex(data["colours"]), np.uint8).reshape(256, 3)
    values = np.clip(values, 0, None)
    return colours[np.floor(255 * values / values.max() + 1e-6).astype(int)].astype(int)


def test_the_curve_shows_what_the_network_saw_and_said(fresh, site):
    figure, t = fresh.locator("[data-explore=curve]"), 40
    assert len(figure.get_by_role("combobox", name="Photograph").locator("option").all()) == 12
    choose(figure.get_by_role("combobox", name="Photograph"), 3)
    data = photograph_of(site, figure)
    figure.locator("input").evaluate(f"e => {{ e.value = {t}; e.dispatchEvent(new Event('input')); }}")
    for method, way in (("cameras", "deletion"), ("msg_cam", "insertion")):
        figure.get_by_role("combobox", name="Method").select_option(method)
        figure.get_by_role("combobox", name="Experiment").select_option(way)
        p = data["methods"][method][way][t]
        assert f"{p:.3f}" in figure.locator("output").inner_text()
        front, ground = decoded(data["picture"]), decoded(data["blurred"])
        if way == "deletion":
            front, ground = ground, front
        replaced = explore.levels(data["methods"][method]["ranks"]) < t
        expected = np.where(replaced[..., None], front, ground).astype(int)
        assert np.abs(drawn(figure, 0) - expected).max() <= 8  # two decoders of JPEG


def test_the_value_under_the_pointer_is_the_maps(fresh, site):
    figure = fresh.locator("[data-explore=methods]")
    choose(figure.get_by_role("combobox", name="Photograph"), 5)
    data = photograph_of(site, figure)
    figure.get_by_role("combobox", name="Method").select_option("cameras")
    canvas = figure.locator("canvas").first
    box = canvas.bounding_box()
    values = explore.drawn(data["methods"]["cameras"])
    for x, y in ((0.3, 0.15), (0.6, 0.2), (0.1, 0.9)):
        canvas.hover(position={"x": x * box["width"], "y": y * box["height"]})
        text = figure.locator("output").inner_text()
        row, column = map(int, re.search(r"row (\d+), column (\d+)", text).groups())
        assert abs(row - y * 224) <= 2 and abs(column - x * 224) <= 2
        assert f": {values[row, column] / 255:.2f}," in text


def test_the_page_sums_masks_and_windows_as_the_equations_say(fresh, site):
    figure, data = fresh.locator("[data-explore=groups]"), data_of(site, "groups")
    figure.locator("input").focus()
    fresh.keyboard.press("End")
    masks = explore.levels(data["masks"]).reshape(-1, data["side"], data["side"])
    total = np.einsum("r,rhw->hw", np.multiply(data["alpha"], data["peak"]), masks.astype(float))
    assert (
        np.abs(drawn(figure, 2) - coloured(data, total)).max() <= 12
    )  # a level more or less: floats of 32 bits

    figure, data = fresh.locator("[data-explore=window]"), data_of(site, "window")
    figure.get_by_role("combobox", name="Map").select_option("all")
    w, whole = data["window"], explore.levels(data["whole"]).astype(float)
    total = np.zeros_like(whole)
    for (y, x), alpha, window in zip(
        data["corners"], data["alpha"], explore.levels(data["maps"]).reshape(-1, w, w), strict=True
    ):
        total[y : y + w, x : x + w] += alpha * window + whole[y : y + w, x : x + w]  # (4-8)
    assert np.abs(drawn(figure, 2) - coloured(data, total)).max() <= 12


def test_a_photograph_whose_file_is_missing_is_said(fresh, site):
    figure = fresh.locator("[data-explore=curve]")
    figure.get_by_role("combobox", name="Photograph").evaluate(
        "e => { e.add(new Option('gone', 'gone')); e.value = 'gone'; e.dispatchEvent(new Event('change')); }"
    )
    figure.locator("[aria-busy=true]").wait_for(state="detached")
    assert "explore/gone.js is missing" in figure.locator("output").inner_text()


def test_without_scripts_the_still_pictures_stand_there(browser, site):
    page = browser.new_context(java_script_enabled=False, viewport=DESKTOP).new_page()
    page.goto((site / EXPLORE).as_uri())
    stills = page.locator(".explore img")
    assert stills.count() == len(KINDS)
    for still in stills.all():
        assert still.is_visible() and still.get_attribute("alt").strip()
        assert still.bounding_box()["height"] > 50
    page.context.close()


def test_the_home_page_tells_all_on_one_screen(browser, site):
    page = browser.new_page(viewport=DESKTOP)
    page.goto((site / "book/intro.html").as_uri())
    page.evaluate(SETTLED)
    for part in page.locator(".home").all() + page.locator("#fig-overview img").all():
        box = part.bounding_box()
        assert box["y"] + box["height"] <= DESKTOP["height"], part
    assert page.locator(".home").count() >= 1
    page.close()


# The looks themselves, tried out

FAULTY = """<!doctype html><html lang="en"><head><title>Faults</title>
<link rel="stylesheet" href="https://nowhere.invalid/a.css"><script>console.error("oh"); setTimeout(() => missing())</script>
</head><body><main><article><h1>Faults</h1>
<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw="><img alt="gone" src="gone.png">
<p>An equation $x^2$ left alone. <span class="math">\\(y\\)</span> <mjx-merror>undefined</mjx-merror></p>
<p style="color: #bbb; background: #fff">grey</p><i style="color: #fff; background: #fff">unseen</i><button></button>
<div style="width: 900px">wide</div><div style="overflow: auto"><div style="width: 900px">scrolls</div></div>
<a href="#nowhere">a</a> <a href="gone.html">b</a> <a href="https://example.org">c</a> <a href="#here">d</a> <b id="here"></b>
</article></main></body></html>"""
EXPECTED = {
    "console": {"oh", "missing is not defined", "ERR_"},
    "requests": {"https://nowhere.invalid/a.css"},
    "images": {"no alt", "broken"},
    "formulas": {r"\(y\)", "error: undefined", "in the text: An equation $x^2$"},
    "accessibility": {"color-contrast: p", "color-contrast: i", "button-name", "image-alt"},
    "wide": {"DIV", "HTML"},
}


def test_a_page_of_faults_fails_every_check(browser, tmp_path):
    path = tmp_path / "faults.html"
    path.write_text(FAULTY, "utf-8")
    seen = look(browser, path, tmp_path)
    assert set(EXPECTED) == set(CHECKS)
    for check, parts in EXPECTED.items():
        for part in parts:
            assert any(part in fault for fault in seen[check]), (check, part, seen[check])
    assert len(seen["wide"]) == 2, seen["wide"]  # not the one that scrolls
    assert [link.split("/")[-1] for link in broken({path: seen}, tmp_path)] == [
        "faults.html#nowhere",
        "gone.html",
    ]


def test_a_dead_figure_is_seen(browser, tmp_path):
    """One that draws but does not answer."""
    path = tmp_path / "dead.html"
    path.write_text("<div class=explore><output>1</output><canvas></canvas><button>x</button></div>", "utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    figure = page.locator(".explore")
    assert changes(figure, lambda: figure.locator("button").click()) == (False, False)
    page.close()
