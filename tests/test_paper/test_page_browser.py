"""The results page in a real Chromium: no error, no request, sorting, copying, runs, narrow screens."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fbt_paper.page.build import write_page
from fbt_paper.plan.figures import FigurePlan
from tests.test_paper.page_results import write_pixels, write_results

selenium = pytest.importorskip("selenium")
from selenium import webdriver  # noqa: E402
from selenium.webdriver import ActionChains, Keys  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.remote.webelement import WebElement  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--mute-audio",
    "--force-color-profile=srgb",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """One Chromium with a fresh profile; without one the tests fail in CI and are skipped elsewhere."""
    if not DRIVER:
        reason = "no chromedriver: apt-get install chromium chromium-driver"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    options = webdriver.ChromeOptions()
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chromium = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield chromium
    chromium.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    flow = write_results(tmp_path_factory.mktemp("results"))
    return write_page(flow, "index", write_pixels(FigurePlan(flow))).as_uri()


@pytest.fixture
def page(browser: webdriver.Chrome, address: str) -> Iterator[webdriver.Chrome]:
    """The page, freshly loaded; whatever a test does with it, the console stays silent."""
    browser.set_window_size(1200, 900)
    browser.get("about:blank")
    browser.get(address)
    yield browser
    assert noise(browser) == []


def noise(browser: webdriver.Chrome) -> list[dict]:
    return [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def column(page: webdriver.Chrome, table: str, index: int, measure: str = "ours") -> list[str]:
    script = (
        "return [...document.querySelectorAll(`#${arguments[0]} tbody tr`)].map((row) => {"
        " const cell = row.cells[arguments[1]];"
        " return cell.dataset[arguments[2]] ?? cell.dataset.value ?? cell.textContent })"
    )
    return page.execute_script(script, table, index, measure)


def press(page: webdriver.Chrome, element: WebElement) -> None:
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()


def said(page: webdriver.Chrome) -> str:
    status = page.find_element(By.ID, "said")
    WebDriverWait(page, 5).until(lambda _: status.text)
    return status.text


def test_no_console_message_and_no_request(page):
    assert noise(page) == []
    asked = page.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in asked if not name.startswith("data:")] == []


def test_sorting_by_a_heading_and_back(page):
    printed = column(page, "table4", 1)
    heading = page.find_elements(By.CSS_SELECTOR, "#table4 .sort")[1]
    press(page, heading)
    values = [float(text) for text in column(page, "table4", 1)]
    assert values == sorted(values, reverse=True)
    assert heading.find_element(By.XPATH, "..").get_attribute("aria-sort") == "descending"
    press(page, heading)
    values = [float(text) for text in column(page, "table4", 1)]
    assert values == sorted(values)
    assert "ascending" in said(page)
    press(page, page.find_element(By.CSS_SELECTOR, "#table4 [data-reset]"))
    assert column(page, "table4", 1) == printed
    assert page.find_elements(By.CSS_SELECTOR, "#table4 [aria-sort]") == []


@pytest.mark.parametrize("measure", ["paper", "gap"])
def test_sorting_by_the_printed_number_and_by_the_gap(page, measure):
    press(page, page.find_elements(By.CSS_SELECTOR, "#table4 .sort")[1])
    Select(page.find_element(By.CSS_SELECTOR, "#table4 [data-measure]")).select_by_value(measure)
    values = [float(text) for text in column(page, "table4", 1, measure) if text]
    assert len(values) > 3 and values == sorted(values, reverse=True)
    ours = [float(text) for text in column(page, "table4", 1)]
    assert ours != sorted(ours, reverse=True)
    assert f"{measure}, descending" in said(page)


def test_sorting_texts_of_the_cost_table(page):
    press(page, page.find_element(By.CSS_SELECTOR, "#table6 .sort"))
    labels = column(page, "table6", 0)
    assert labels == sorted(labels, key=str.lower)


@pytest.mark.parametrize(("kind", "words"), [("latex", r"\toprule"), ("csv", "scale,row,column")])
@pytest.mark.parametrize("clipboard", [True, False])
def test_copying_with_and_without_the_clipboard(page, kind, words, clipboard):
    if clipboard:
        page.execute_script(
            "window.copied = null;"
            "Object.defineProperty(navigator, 'clipboard', {configurable: true,"
            " value: {writeText: async (text) => { window.copied = text; }}})"
        )
    else:
        page.execute_script(
            "Object.defineProperty(navigator, 'clipboard', {configurable: true, value: undefined});"
            "window.copied = null; document.addEventListener('copy', () => {"
            " window.copied = document.activeElement.value; })"
        )
    press(page, page.find_element(By.CSS_SELECTOR, f"#table5 [data-copy={kind}]"))
    assert "copied" in said(page)
    assert words in page.execute_script("return window.copied")


def test_where_nothing_can_be_copied_the_text_is_shown(page):
    page.execute_script(
        "Object.defineProperty(navigator, 'clipboard', {configurable: true, value: undefined});"
        "document.execCommand = () => false"
    )
    press(page, page.find_element(By.CSS_SELECTOR, "#table5 [data-copy=latex]"))
    assert r"\toprule" in page.find_element(By.CSS_SELECTOR, "dialog textarea").get_attribute("value")


def open_cell(page: webdriver.Chrome, cell: str) -> WebElement:
    button = page.find_element(By.CSS_SELECTOR, f'[data-id="{cell}"]')
    press(page, button)
    return button


def test_opening_a_cell_shows_its_runs(page):
    button = open_cell(page, "table4/mse_final/top1")
    dialog = page.find_element(By.ID, "runs")
    assert dialog.get_attribute("open") is not None
    assert page.find_element(By.ID, "runs-title").text.startswith("Table 4: L MSE in the final features")
    assert len(dialog.find_elements(By.CSS_SELECTOR, ".run")) == 3
    text = dialog.text
    for words in (
        "Seed 0",
        "Seed 2",
        "best top-1",
        "wall time",
        "c0ffee",
        "fashion_mnist-",
        "12,345",
        "abab",
    ):
        assert words in text
    (folder,) = re.findall(r"delete the folder (\S+/runs/\S+-\w{10}),", text)[:1]
    assert f"snakemake --cores 2 {folder}/metrics.json --config scale=smoke" in text
    charts = dialog.find_elements(By.CSS_SELECTOR, ".curves svg[role=img]")
    assert [chart.get_attribute("aria-label").split(":")[0] for chart in charts] == [
        "Top-1 accuracy (%) by epoch",
        *(f"Loss terms by epoch (seed {seed})" for seed in (0, 1, 2)),
    ]
    for chart in charts:
        heights = {
            text.get_attribute("y") for text in chart.find_elements(By.CSS_SELECTOR, "text[text-anchor=end]")
        }
        assert len(heights) >= 3
    for summary in dialog.find_elements(By.CSS_SELECTOR, ".run:first-of-type summary"):
        summary.click()
    opened = dialog.find_element(By.CSS_SELECTOR, ".run").text
    for words in ("optimizer.learning_rate", '"engine_revision"', "torch", "epoch 3 top-1"):
        assert words in opened
    assert "null" not in opened
    page.find_element(By.ID, "close").click()
    assert dialog.get_attribute("open") is None
    assert page.switch_to.active_element == button


def test_the_teachers_run_is_reached_from_a_cell_and_left_again(page):
    open_cell(page, "table2/fbt/swin_t__resnet18")
    dialog, cell = page.find_element(By.ID, "runs"), page.find_element(By.ID, "runs-title").text
    link = dialog.find_element(By.CSS_SELECTOR, "[data-run]")
    teacher = link.text
    press(page, link)
    assert page.find_element(By.ID, "runs-title").text == f"Run {teacher}"
    assert [code.text for code in dialog.find_elements(By.CSS_SELECTOR, ".run h3 code")] == [teacher]
    press(page, dialog.find_element(By.CSS_SELECTOR, "[data-back]"))
    assert page.find_element(By.ID, "runs-title").text == cell
    assert dialog.find_elements(By.CSS_SELECTOR, "[data-back]") == []


TICKS = "const found = []; for (const [a, b] of arguments[0]) found.push(ticks(a, b, 4)); return found"


def test_charts_have_three_ticks_at_least(page):
    spans = [(1.01, 1.99), (0.9, 2.1), (80, 84.9), (0.0023, 0.0031), (0, 300), (61.2, 61.3)]
    for (low, high), values in zip(spans, page.execute_script(TICKS, spans), strict=True):
        assert 3 <= len(values) <= 9
        assert low - 1e-3 <= min(values) and max(values) <= high + 1e-3 * high


def test_a_curve_of_one_epoch_is_a_dot(page):
    lines = [{"name": "a", "x": [6], "y": [71.2]}, {"name": "b", "x": [2, 6], "y": [None, 70.1]}]
    drawn = page.execute_script("return chart('x', arguments[0]).outerHTML", lines)
    # One more is the pointer's.
    assert drawn.count("<circle") == 3
    assert 'fill="var(--first)"' in drawn and 'fill="var(--second)"' in drawn


def tab_to(page: webdriver.Chrome, selector: str, at_most: int = 80) -> WebElement:
    """Press Tab until the element that fits has the focus."""
    for _ in range(at_most):
        ActionChains(page).send_keys(Keys.TAB).perform()
        if page.execute_script("return document.activeElement.matches(arguments[0])", selector):
            return page.switch_to.active_element
    raise AssertionError(f"{at_most} times Tab do not lead to {selector}")


def press_shift_tab_to(page: webdriver.Chrome, selector: str, at_most: int = 20) -> None:
    for _ in range(at_most):
        ActionChains(page).key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT).perform()
        if page.execute_script("return document.activeElement.matches(arguments[0])", selector):
            return
    raise AssertionError(f"{at_most} times Shift-Tab do not lead to {selector}")


def test_by_keyboard_alone(page):
    """From the top of the page by Tab: sort a table, back to the printed order, then open a cell."""
    printed = column(page, "table2", 1)
    heading = tab_to(page, "#table2 .sort[data-column='1']")
    for expected in ("descending", "ascending"):
        ActionChains(page).send_keys(Keys.ENTER).perform()
        assert heading.find_element(By.XPATH, "..").get_attribute("aria-sort") == expected
    values = [float(text) for text in column(page, "table2", 1)]
    assert values == sorted(values)
    press_shift_tab_to(page, "#table2 [data-reset]")
    ActionChains(page).send_keys(Keys.SPACE).perform()
    assert column(page, "table2", 1) == printed
    button = tab_to(page, '[data-id="table2/fbt/swin_t__resnet18"]')
    ActionChains(page).send_keys(Keys.ENTER).perform()
    assert page.find_element(By.ID, "runs").get_attribute("open") is not None
    for _ in range(12):
        ActionChains(page).send_keys(Keys.TAB).perform()
        inside = "const e = document.activeElement; return e === document.body || !!e.closest('dialog')"
        assert page.execute_script(inside)  # the dialog keeps the focus
    ActionChains(page).send_keys(Keys.ESCAPE).perform()
    assert page.find_element(By.ID, "runs").get_attribute("open") is None
    assert page.switch_to.active_element == button
    outline = page.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_skip_link_is_first_and_leads_to_the_tables(page):
    ActionChains(page).send_keys(Keys.TAB).perform()
    assert page.switch_to.active_element.text == "Skip to the tables"
    ActionChains(page).send_keys(Keys.ENTER).perform()
    assert page.execute_script("return document.activeElement.id") == "main"


def test_a_link_to_a_cell_opens_it(page, address):
    page.get("about:blank")
    page.get(address + "#cell=table2/fbt/swin_t__resnet18")
    assert page.find_element(By.ID, "runs-title").text.startswith("Table 2: Our FBT")


def set_viewport(page: webdriver.Chrome, width: int, height: int = 800) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@pytest.mark.parametrize("width", [400, 320])
def test_narrow_screens_never_scroll_sideways(page, address, width):
    set_viewport(page, width)
    try:
        page.get(address)
        assert page.execute_script("return innerWidth") == width
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        open_cell(page, "table4/mse_final/top1")
        for summary in page.find_elements(By.CSS_SELECTOR, "dialog summary"):
            page.execute_script("arguments[0].parentElement.open = true", summary)
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        body = "const d = document.getElementById('runs'); return d.scrollWidth - d.clientWidth"
        assert page.execute_script(body) <= 0
        page.find_element(By.ID, "close").click()
        press(page, page.find_elements(By.CSS_SELECTOR, "#table4 .sort")[0])
        assert said(page)
        over = (
            "const box = document.getElementById('said').getBoundingClientRect();"
            "return [0.1, 0.5, 0.9].map((part) => document.elementFromPoint("
            "box.left + part * box.width, box.top + box.height / 2).id)"
        )
        assert page.execute_script(over) == ["said"] * 3  # nothing lies over the message
        assert page.execute_script("return document.getElementById('said').offsetWidth") > 0.5 * width
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


CONTRAST = """
const luminance = (c) => { const [r, g, b] = c.map((v) => { v /= 255; return v <= 0.03928 ? v / 12.92 :
  ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
const backdrop = (e) => { for (; e; e = e.parentElement) {
  const c = numbers(getComputedStyle(e).backgroundColor);
  if (c.length < 4 || c[3] === 1) return c.slice(0, 3); } return [255, 255, 255]; };
const bad = [];
for (const e of document.querySelectorAll('body *')) {
  if (e.closest('svg, script, .unseen') || !e.offsetParent) continue;
  if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())) continue;
  const [a, b] = [numbers(getComputedStyle(e).color).slice(0, 3), backdrop(e)].map(luminance);
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) bad.push([e.tagName, e.className, e.textContent.slice(0, 30), ratio]);
}
return bad;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_of_every_text(page, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        assert page.execute_script(CONTRAST) == []
        open_cell(page, "table4/mse_final/top1")
        assert page.execute_script(CONTRAST) == []
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_pictures_are_drawn(page):
    figures = page.find_elements(By.CSS_SELECTOR, "main figure img")
    assert len(figures) == 5  # the taxonomy, maps and numbers of features, two similarities
    page.execute_script("for (const i of document.images) i.loading = 'eager'")
    drawn = "return [...document.images].every((image) => image.complete && image.naturalWidth > 0)"
    WebDriverWait(page, 5).until(lambda _: page.execute_script(drawn))


# ---------------------------------------------------------------- evidence, search, grids


def test_the_evidence_card_counts_whose_each_setting_is(page):
    open_cell(page, "table2/fbt/swin_t__resnet18")
    card = page.find_element(By.ID, "runs-body")
    (summary,) = [s for s in card.find_elements(By.TAG_NAME, "summary") if "settings:" in s.text]
    total, *counts = map(int, re.findall(r"\d+", summary.text))
    assert sum(counts) == total > 26
    press(page, summary)
    rows = card.find_elements(By.CSS_SELECTOR, ".settings tbody tr")
    assert len(rows) == total
    kinds = [row.find_element(By.CSS_SELECTOR, ".kind").text for row in rows]
    assert kinds.count("our assumption") == counts[2]
    text = " ".join(row.text for row in rows)
    assert "direction symmetric our assumption open: mean of both ways" in text
    steps = [step.text for step in card.find_elements(By.CSS_SELECTOR, ".chain li")]
    assert steps == ["Swin-T", "fused model", "ResNet18"]
    assert "gain over scratch" in card.text and "its teacher" in card.text


def test_assistants_and_phases_are_in_the_chain(page):
    chains = {}
    for row in ("a", "d"):
        open_cell(page, f"table3/{row}/top1")
        chains[row] = [step.text for step in page.find_elements(By.CSS_SELECTOR, ".chain li")]
        page.find_element(By.ID, "close").click()
    assert chains["a"] == ["Swin-T", "ResNet34", "ResNet18"]
    assert chains["d"] == ["Swin-T", "ResNet18", "next phase: ResNet34", "ResNet18"]


def test_a_card_gives_link_latex_command_and_weights(page):
    open_cell(page, "table4/mse_final/top1")
    page.execute_script(
        "window.copied = []; Object.defineProperty(navigator, 'clipboard', {configurable: true,"
        " value: {writeText: async (text) => { window.copied.push(text); }}})"
    )
    for button in page.find_elements(By.CSS_SELECTOR, "dialog [data-text]"):
        press(page, button)
    link, latex, command, weights = page.execute_script("return window.copied")
    assert link.endswith("index.html#cell=table4/mse_final/top1") and r"$\pm$" in latex
    assert command.startswith("rm -r ") and "snakemake" in command
    assert weights.endswith("/weights.safetensors")
    dots = page.find_element(By.CSS_SELECTOR, "svg.seeds").find_elements(By.TAG_NAME, "circle")
    assert len(dots) == 3


def test_a_curve_gives_its_value_where_the_pointer_is(page):
    open_cell(page, "table4/mse_final/top1")
    chart = page.find_element(By.CSS_SELECTOR, "dialog .curves svg")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
    ActionChains(page).move_to_element(chart).perform()
    readout = page.find_element(By.CSS_SELECTOR, "dialog .readout").text
    assert re.fullmatch(r"seed [012], epoch \d: [\d.]+", readout)


def test_the_search_leads_to_a_row(page):
    page.find_element(By.ID, "search").send_keys("infonce pooling")
    (hit,) = page.find_elements(By.CSS_SELECTOR, "#hits button")
    assert "Table 4" in hit.text
    hit.click()
    focused = page.switch_to.active_element
    assert focused.get_attribute("data-id") == "table4/infonce_final_pooled/top1"
    page.find_element(By.ID, "search").clear()
    page.find_element(By.ID, "search").send_keys("nothing like it")
    assert page.find_elements(By.CSS_SELECTOR, "#hits button") == []


def test_the_page_keeps_its_height_while_it_is_read(page):
    height = "return document.documentElement.scrollHeight"
    before = page.execute_script(height)
    page.execute_script("scrollTo(0, document.documentElement.scrollHeight)")
    page.execute_script("for (const image of document.images) image.loading = 'eager'")
    drawn = "return [...document.images].every((image) => image.complete)"
    WebDriverWait(page, 5).until(lambda _: page.execute_script(drawn))
    assert page.execute_script(height) == before


@pytest.fixture(scope="module")
def grid_address(tmp_path_factory: pytest.TempPathFactory) -> str:
    flow = write_results(tmp_path_factory.mktemp("grid"), "grid")
    return write_page(flow, "grid", write_pixels(FigurePlan(flow), "grid")).as_uri()


def test_a_grid_fits_the_screen_and_its_switch_colours_gains(browser, grid_address):
    set_viewport(browser, 1280, 900)
    try:
        browser.get(grid_address)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 1280
        right = "return document.querySelector('#cifar100 .matrix').getBoundingClientRect().right"
        assert browser.execute_script(right) <= 1280
        Select(browser.find_element(By.CSS_SELECTOR, "#cifar100 [data-measure]")).select_by_value("gain")
        script = (
            "return [...document.querySelectorAll('#cifar100 tbody tr:not(.closing) td')]"
            ".map((td) => [td.dataset.gain, td.querySelector('.ours')?.textContent,"
            " td.style.backgroundColor])"
        )
        cells = [cell for cell in browser.execute_script(script) if cell[0]]
        assert len(cells) > 100 and all(abs(float(gain) - float(text)) < 0.006 for gain, text, _ in cells)
        assert all(("--below" in colour) == (float(gain) < 0) for gain, _, colour in cells)
        heads = browser.find_elements(By.CSS_SELECTOR, "#curves_cifar100 .curves figure")
        assert len(heads) == 12 and "others in grey" in heads[0].text
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def accessibility_problems(page: webdriver.Chrome, part: str) -> list[str]:
    """What axe finds in a part of the page as it is now."""
    axe = pytest.importorskip("axe_core_python")
    page.execute_script((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    script = (
        "const done = arguments[1]; axe.run(arguments[0]).then((found) => "
        "done(found.violations.map((v) => `${v.id} ${v.nodes[0].html}`)))"
    )
    page.set_script_timeout(120)
    return page.execute_async_script(script, part)


def test_axe_finds_nothing(page, grid_address):
    assert accessibility_problems(page, "html") == []
    open_cell(page, "table2/fbt/swin_t__resnet18")
    for summary in page.find_elements(By.CSS_SELECTOR, "dialog summary"):
        page.execute_script("arguments[0].parentElement.open = true", summary)
    assert accessibility_problems(page, "dialog") == []
    page.get(grid_address)
    # One grid: axe looks at every cell, and the others are made by the same template.
    assert accessibility_problems(page, "#homogeneous") == []
