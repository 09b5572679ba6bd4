"""report.html in a browser: headless Chromium with its driver. KDFAST_BROWSER=required makes a missing one an error."""

import base64
import os
import re
import shutil

import pytest

from kdfast.distill import schedules
from kdfast.report.analysis import analyse
from kdfast.report.figures import ORDER
from kdfast.report.figures.style import FONT_SIZE, STRATEGIES
from kdfast.report.page import comparison_files, page, page_files
from kdfast.report.two_studies import compare
from tests.report.fake_study import SMALL_GRID, make_study
from tests.report.test_page import HOSTILE, with_names

try:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.support.ui import WebDriverWait
except ImportError:  # the fixture `browser` says so
    pass

pytestmark = pytest.mark.slow
WIDTHS = (1280, 390)


def browser_is_missing():
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed (pip install 'kdfast[test]')"
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{' and '.join(missing)} not found (Debian: chromium, chromium-driver)" if missing else ""


@pytest.fixture(scope="module")
def browser():
    if reason := browser_is_missing():
        assert os.environ.get("KDFAST_BROWSER") != "required", reason
        pytest.skip(reason)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--hide-scrollbars", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def shown(browser, report_page):
    """The page, freshly loaded at 1280 pixels."""
    at_width(browser, 1280)
    browser.get_log("browser")
    browser.get(report_page.as_uri())
    return browser


@pytest.fixture(scope="module")
def whole_page(tmp_path_factory):
    """The page of a study of 132 configurations."""
    folder = tmp_path_factory.mktemp("whole")
    store = make_study(folder / "study", jets=1200, latency=True)
    path = folder / "report.html"
    path.write_bytes(page_files(analyse(store), store)["report.html"])
    return path


def at_width(browser, width, media="", scheme="light"):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def column(browser, table, number):
    """The sort keys of a column, as they stand."""
    return browser.execute_script(
        "return [...document.getElementById(arguments[0]).tBodies[0].rows].map("
        "row => row.cells[arguments[1]].dataset.value ?? row.cells[arguments[1]].textContent.trim())",
        table,
        number,
    )


def heads(browser, table):
    return browser.find_elements("css selector", f"#{table} thead th")


def sorts(browser, table):
    return browser.execute_script(
        "return [...document.getElementById(arguments[0]).tHead.querySelectorAll('th')].map("
        "head => head.getAttribute('aria-sort'))",
        table,
    )


def test_no_errors_and_no_requests(shown):
    assert shown.get_log("browser") == []
    requested = shown.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in requested if not name.startswith("data:")] == []
    assert shown.title == "a <b>bold & study: knowledge distillation sweep"
    assert len(shown.find_elements("css selector", "figure svg")) == len(ORDER) - 1  # it was no race


@pytest.mark.parametrize("width", WIDTHS)
def test_no_horizontal_scroll(shown, width):
    at_width(shown, width)
    wide, inner = shown.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert inner == width
    assert wide <= width
    # nothing reaches out of the page either, but inside what scrolls by itself
    outside = shown.execute_script(
        "return [...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll') && "
        "e.getBoundingClientRect().right > window.innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert outside == []


def test_labels_of_the_first_comparisons_are_whole_on_a_phone(shown):
    """Three lines at most; in a narrow column they broke between letters."""
    at_width(shown, 390)
    lines = "parseFloat(getComputedStyle(e).lineHeight) || 1.6 * parseFloat(getComputedStyle(e).fontSize)"
    script = f"return [...document.querySelectorAll('.forest tbody th')].map(e => e.clientHeight / ({lines}))"
    heights = shown.execute_script(script)
    assert len(heights) > 1
    assert max(heights) < 3.5


def test_figures_are_whole_on_a_phone(shown):
    """A figure fits its frame, or the frame scrolls; text is drawn at one scale, and is large enough to read."""
    at_width(shown, 390)
    frames = shown.execute_script(
        "return [...document.querySelectorAll('figure .scroll')].map(frame => { const svg = frame.querySelector('svg');"
        "return [svg.getBoundingClientRect().width, frame.scrollWidth, frame.clientWidth, svg.viewBox.baseVal.width,"
        "getComputedStyle(frame).overflowX]; })"
    )
    assert len(frames) == len(ORDER) - 1  # it was no race
    for drawn, reached, inside, points, overflow in frames:
        assert drawn <= reached + 1
        assert reached <= inside or overflow == "auto"
        assert FONT_SIZE * drawn / points >= 11.5  # pixels


def printed_pages(browser, width=8.27, height=11.69):
    """How many pages of A4 (inches) the page fills."""
    options = {"printBackground": True, "preferCSSPageSize": True, "paperWidth": width, "paperHeight": height}
    document = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", options)["data"])
    assert document.startswith(b"%PDF")
    return len(re.findall(rb"/Type\s*/Page\b", document))


def test_the_whole_study_is_printed_on_ten_pages(browser, whole_page):
    """132 configurations. What is wider than the paper would be printed smaller."""
    browser.get(whole_page.as_uri())
    at_width(browser, 703, media="print")  # A4 between its margins
    cut = browser.execute_script(
        "return [...document.querySelectorAll('table, figure svg')].filter(e => "
        "e.getBoundingClientRect().right > window.innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert cut == []
    small = browser.execute_script(
        "const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT); const found = new Set();"
        "while (texts.nextNode()) { const e = texts.currentNode.parentElement;"
        "if (texts.currentNode.data.trim() && !e.closest('sub, desc, title, script, style') && e.checkVisibility() &&"
        "parseFloat(getComputedStyle(e).fontSize) < 11.99) found.add(e.outerHTML.slice(0, 80)); } return [...found]"
    )
    assert small == []  # 9 points are 12 pixels
    widths = browser.execute_script(
        "return [...document.querySelectorAll('figure svg')].map("
        "svg => [svg.getBoundingClientRect().width, svg.viewBox.baseVal.width])"
    )
    assert min(FONT_SIZE * 0.75 * drawn / points for drawn, points in widths) >= 9.0
    assert printed_pages(browser) <= 10


def luminance(color):
    """Relative luminance of "rgb(…)"."""
    channels = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_of_both_schemes(shown, scheme):
    """Text has a contrast of at least 4.5:1, lines and dots of 3:1; figures are on a white card."""
    at_width(shown, 1280, scheme=scheme)
    paper = shown.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (luminance(paper) < 0.05) == (scheme == "dark")
    texts = shown.execute_script(
        "const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;"
        "if (!c.endsWith(', 0)')) return c; } }; const found = {};"
        "const kinds = 'p, a, li, th, td, caption, figcaption, summary, pre, dt, dd, button';"
        "for (const e of document.querySelectorAll(kinds)) {"
        "const c = getComputedStyle(e).color; found[c + ground(e)] = [c, ground(e)]; }"
        "return Object.values(found)"
    )
    assert len(texts) > 3
    for ink, ground in texts:
        assert contrast(ink, ground) >= 4.5, (ink, ground)
    strokes = shown.execute_script(
        "return ['kind0', 'kind1', 'kind2', 'kind3', 'pointed', 'other'].map("
        "kind => getComputedStyle(document.querySelector(`.plot .${kind}`)).stroke)"
    )
    assert min(contrast(stroke, paper) for stroke in strokes) >= 3.0
    cards = shown.execute_script(
        "return [...document.querySelectorAll('figure svg')].map(svg => getComputedStyle(svg).backgroundColor)"
    )
    assert set(cards) == {"rgb(255, 255, 255)"}


def test_a_link_opens_what_is_folded(shown):
    assert not shown.find_element("id", "runs").get_property("open")
    shown.execute_script("document.querySelector('#contents a[href=\"#runs\"]').click()")
    assert shown.find_element("id", "runs").get_property("open")
    shown.execute_script("document.getElementById('runs').open = false; location.hash = '#runs-table'")
    WebDriverWait(shown, 5).until(lambda browser: browser.find_element("id", "runs").get_property("open"))


def test_contents_follow_the_reader(shown):
    for width, place in ((1280, "column"), (390, "row")):
        at_width(shown, width)
        for part in ("figures", "configurations"):
            shown.execute_script("document.getElementById(arguments[0]).scrollIntoView()", part)
            WebDriverWait(shown, 5).until(
                lambda browser, part=part: browser.execute_script(
                    "const read = '#contents > ul > li:has([aria-current]) > a';"
                    "return document.querySelector(read)?.hash === '#' + arguments[0]",
                    part,
                )
            )
            box = shown.execute_script(
                "const b = document.getElementById('contents').getBoundingClientRect(); return [b.top, b.width]"
            )
            assert box[0] == 0  # in sight
            assert (box[1] < 300) == (place == "column")


# ---- runs that a reader asks for


def shown_runs(browser):
    """Numbers of the rows of the table of runs, in the order of the report."""
    return browser.execute_script("return filters.get('runs-table').rows.flatMap((row, i) => row.hidden ? [] : [i])")


def address(browser):
    return browser.execute_script("return location.hash")


def drag(browser, selector, begin, end):
    """Of an element, between heights in shares from its lower end."""
    element = browser.find_element("css selector", selector)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    height = element.rect["height"]
    offsets = [round(height / 2 - share * height) for share in (begin, end)]
    actions = ActionChains(browser, duration=20)
    actions.move_to_element_with_offset(element, 0, offsets[0]).click_and_hold()
    actions.move_by_offset(0, offsets[1] - offsets[0]).release().perform()


def test_words_and_strategies_narrow_the_table(shown, analysis):
    shown.execute_script("location.hash = '#runs'")
    shown.find_element("id", "runs-table-words").send_keys("T7 combined")
    names = [run.run_name for run in analysis.runs]
    assert shown_runs(shown) == [i for i, name in enumerate(names) if name.startswith("combined_T7")]
    shown.find_element("id", "runs-table-words").clear()
    shown.find_element("css selector", "#runs-table-controls option:nth-child(3)").click()
    chosen = shown.find_element("css selector", "#runs-table-controls select").get_property("value")
    labels = {name: label for name, (label, _, _) in STRATEGIES.items()}
    expected = [i for i, run in enumerate(analysis.runs) if labels[run.strategy] == chosen]
    assert shown_runs(shown) == expected
    assert 0 < len(expected) < len(names)
    said = shown.find_element("css selector", "#runs-table-controls output").get_property("textContent")
    assert said == f"{len(expected)} of {len(names)} rows"


def test_a_range_filters_the_table_and_a_link_restores_it(shown, report_page, analysis):
    drag(shown, "[data-axis=auc] .zone", 0.55, 1.0)
    known = [run.auc.value for run in analysis.runs if run.auc]
    kept = shown_runs(shown)
    assert 0 < len(kept) < len(known)
    values = {i: run.auc.value for i, run in enumerate(analysis.runs) if run.auc}
    assert min(values[i] for i in kept) >= max(value for i, value in values.items() if i not in kept) - 2e-5
    drag(shown, "[data-axis=alpha_init] .zone", 0.8, 1.0)  # the higher of two values
    kept = shown_runs(shown)
    assert kept
    assert all(analysis.runs[i].alpha_init == 0.9 for i in kept)
    WebDriverWait(shown, 5).until(lambda browser: "alpha_init=0.9%3A0.9" in address(browser))
    link = report_page.as_uri() + address(shown)
    said = shown.find_element("id", "explorer-count").text
    assert said == f"{len(kept)} of {len(known)} runs selected"
    shown.get("about:blank")
    shown.get(link)
    assert shown_runs(shown) == kept
    WebDriverWait(shown, 5).until(lambda browser: browser.find_element("id", "explorer-count").text == said)
    drawn = shown.execute_script(
        "return [...document.querySelectorAll('#explorer-auc_val .run:not(.other)')].map("
        "path => (path.getAttribute('d').match(/M/g) ?? []).length)"
    )
    assert sum(drawn) == len(kept)
    shown.find_element("id", "explorer-clear").click()
    assert len(shown_runs(shown)) == len(analysis.runs)
    WebDriverWait(shown, 5).until(lambda browser: address(browser) == "#explorer")


def test_ranges_by_keyboard(shown, analysis):
    shown.execute_script("document.getElementById('explorer-ranges').open = true")
    field = shown.find_element("css selector", "[aria-label='Initial α, from']")
    field.send_keys("0.5\t")
    assert {analysis.runs[i].alpha_init for i in shown_runs(shown)} == {0.9}


def test_a_point_is_described_and_held(shown, analysis):
    zone = shown.find_element("css selector", "#explorer-scatter .zone")
    shown.execute_script("arguments[0].scrollIntoView({block: 'center'})", zone)
    best = max((run for run in analysis.runs if run.auc), key=lambda run: run.auc.value)
    ActionChains(shown).move_to_element(zone).perform()
    x = 0.5 - 0.04 / 1.08  # the highest AUC, with 4 % of the range beyond it
    low, high = (f(run.rejection["50"].value for run in analysis.runs if run.auc) for f in (min, max))
    share = (best.rejection["50"].value - low) / (high - low)
    offsets = [x * zone.rect["width"], (0.5 - (share + 0.06) / 1.12) * zone.rect["height"]]
    ActionChains(shown).move_to_element_with_offset(zone, *map(round, offsets)).click().perform()
    ActionChains(shown).move_to_element(shown.find_element("id", "explorer-count")).perform()
    text = f"{best.run_name}, seed {best.seed}: AUC {best.auc.value:.4f}"
    WebDriverWait(shown, 5).until(lambda browser: browser.find_element("id", "explorer-run").text.startswith(text))
    WebDriverWait(shown, 5).until(lambda browser: f"run={analysis.runs.index(best)}" in address(browser))


def test_sorting_by_mouse(shown, analysis):
    table, auc = "configurations-table", 5
    assert sorts(shown, table)[0] == "ascending"  # as it stands: by rank
    button = heads(shown, table)[auc].find_element("css selector", "button")
    button.click()
    values = [float(value) for value in column(shown, table, auc)]
    assert values == sorted((row.auc.value for row in analysis.configurations), reverse=True)
    expected = ["none"] * len(heads(shown, table))
    expected[auc] = "descending"
    assert sorts(shown, table) == expected
    button.click()
    assert [float(value) for value in column(shown, table, auc)] == sorted(values)
    assert sorts(shown, table)[auc] == "ascending"
    said = shown.find_element("id", f"{table}-status").get_property("textContent")
    assert said == "Sorted by AUC, ascending"


@pytest.mark.parametrize("key", ["\ue007", " "], ids=["enter", "space"])
def test_sorting_by_keyboard(shown, key):
    """Tab reaches every head in turn; Enter and the space bar sort."""
    from selenium.webdriver.common.keys import Keys

    table = "runs-table"
    shown.execute_script("document.getElementById('runs').open = true")
    shown.execute_script("document.querySelector('#runs-table').closest('.scroll').focus()")
    names = []
    for head in heads(shown, table):
        shown.switch_to.active_element.send_keys(Keys.TAB)
        names.append(shown.execute_script("return document.activeElement.closest('th')?.textContent"))
        assert names[-1] == head.get_property("textContent")
    shown.execute_script("document.querySelector('#runs-table').closest('.scroll').focus()")
    for _ in range(2):
        shown.switch_to.active_element.send_keys(Keys.TAB)
    shown.switch_to.active_element.send_keys(key)  # seeds
    assert sorts(shown, table)[1] == "descending"
    seeds = [int(value) for value in column(shown, table, 1)]
    assert seeds == sorted(seeds, reverse=True)
    shown.switch_to.active_element.send_keys(key)
    assert [int(value) for value in column(shown, table, 1)] == sorted(seeds)
    assert shown.execute_script("return document.activeElement.tagName") == "BUTTON"  # focus stays


def test_names_sort_as_people_do_and_unknown_values_come_last(shown, analysis):
    table = "runs-table"
    shown.execute_script("document.getElementById('runs').open = true")
    heads(shown, table)[0].find_element("css selector", "button").click()
    assert sorts(shown, table)[0] == "ascending"
    names = column(shown, table, 0)
    assert names[0].startswith("alphasched_T3.0")
    assert names[-1].startswith("tempanneal_T7.0")
    auc = heads(shown, table)[3].find_element("css selector", "button")
    diverged = sum(run.status == "diverged" for run in analysis.runs)
    assert diverged == 2
    for _ in range(2):  # either way
        auc.click()
        values = column(shown, table, 3)
        assert values[-diverged:] == [""] * diverged
        assert "" not in values[:-diverged]


def test_names_are_text_in_scripts_too(browser, analysis, tmp_path):
    path = tmp_path / "report.html"
    analysis = with_names(analysis, HOSTILE)
    path.write_text(page(analysis, []), encoding="utf-8")
    at_width(browser, 1280)
    browser.get_log("browser")
    browser.get(path.as_uri())
    for name in HOSTILE:
        i, run = next((i, run) for i, run in enumerate(analysis.runs) if run.run_name == name and run.auc)
        browser.execute_script(
            "filters.get('runs-table').rows[arguments[0]].cells[0].dispatchEvent("
            "new PointerEvent('pointerover', {bubbles: true}))",
            i,
        )
        expected = f"{name}, seed {run.seed}: "
        WebDriverWait(browser, 5).until(
            lambda browser, expected=expected: (
                browser.find_element("id", "explorer-run").get_property("textContent").startswith(expected)
            )
        )
    assert browser.execute_script("return typeof hacked") == "undefined"
    assert browser.find_elements("css selector", "img") == []
    assert browser.get_log("browser") == []


def test_it_reads_without_scripts(browser, report_page, analysis):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(report_page.as_uri())
        rows = browser.find_elements("css selector", "#configurations-table tbody tr")
        assert [row.find_element("css selector", "th").text for row in rows] == [
            schedules.shown(row.run_name) for row in analysis.configurations
        ]
        assert browser.find_elements("css selector", "thead button") == []
        assert len(browser.find_elements("css selector", "figure svg")) == len(ORDER) - 1  # it was no race
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_figures_have_names_for_screen_readers(shown):
    for element in shown.find_elements("css selector", "figure svg"):
        assert element.accessible_name
        assert element.aria_role in ("img", "image")


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_of_two_studies(browser, tmp_path, width):
    """A study compared with itself."""
    provenance = {"decisive": {"data": {"fingerprint": "f" * 64}}}
    store = make_study(tmp_path / "study", SMALL_GRID, seeds=(1, 2), jets=1200, provenance=provenance, latency=True)
    path = tmp_path / "comparison.html"
    path.write_bytes(comparison_files(compare(store, store))["comparison.html"])
    at_width(browser, width)
    browser.get_log("browser")
    browser.get(path.as_uri())
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert len(browser.find_elements("css selector", "figure svg")) == 1
    table = "differences-table"
    heads(browser, table)[2].find_element("css selector", "button").click()
    values = [float(value) for value in column(browser, table, 2)]
    assert len(values) > 2
    assert values == sorted(values, reverse=True)
    assert sorts(browser, table)[2] == "descending"
