"""report.html in a browser: headless Chromium with its driver. KDFAST_BROWSER=required makes a missing one an error."""

import base64
import os
import shutil

import pytest

from kdfast.report.page import comparison_files
from kdfast.report.two_studies import compare
from tests.report.fake_study import SMALL_GRID, make_study

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
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
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


def at_width(browser, width, media=""):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media})


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
    assert len(shown.find_elements("css selector", "figure svg")) == 13


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


def test_printed_pages_hold_the_tables(shown):
    at_width(shown, 700, media="print")  # A4 between its margins
    cut = shown.execute_script(
        "return [...document.querySelectorAll('table, figure svg')].filter(e => "
        "e.getBoundingClientRect().right > window.innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert cut == []
    printed = shown.execute_cdp_cmd("Page.printToPDF", {"printBackground": True, "preferCSSPageSize": True})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")


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


def test_it_reads_without_scripts(browser, report_page, analysis):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(report_page.as_uri())
        rows = browser.find_elements("css selector", "#configurations-table tbody tr")
        assert [row.find_element("css selector", "th").text for row in rows] == [
            row.run_name for row in analysis.configurations
        ]
        assert browser.find_elements("css selector", "thead button") == []
        assert len(browser.find_elements("css selector", "figure svg")) == 13
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
    store = make_study(tmp_path / "study", SMALL_GRID, seeds=(1, 2), jets=1200, provenance=provenance)
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
