"""The report page in a real browser, which has no network."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest

from tests.evaluation.report_run import (
    ALPHA,
    BETA,
    HOSTILE,
    data_of,
    evaluated_run,  # noqa: F401 - a fixture
)

# In the browser: one session for all of these, because it takes seconds to start.


@pytest.fixture(scope="module")
def chrome():
    """Headless Chromium without a network."""
    webdriver = pytest.importorskip("selenium.webdriver")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    program = next((path for path in map(shutil.which, names) if path), None)
    driver_program = shutil.which("chromedriver")
    if program is None or driver_program is None:
        pytest.skip("chromium and chromedriver are not on PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_program))
    driver.execute_cdp_cmd("Network.enable", {})
    conditions = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)
    yield driver
    driver.quit()


class Page:
    """The report in the browser, with the questions a reader would ask of it."""

    def __init__(self, driver, path):
        self.driver, self.address = driver, path.as_uri()

    def open(self, hash_part="", width=1400, height=1000):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.get("about:blank")
        self.driver.get(self.address + hash_part)
        return self

    def find(self, css):
        return self.driver.find_elements("css selector", css)

    def one(self, css):
        return self.driver.find_element("css selector", css)

    def press(self, *keys):
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def script(self, source, *arguments):
        return self.driver.execute_script(f"return {source}", *arguments)

    def listed(self):
        return self.script("[...document.querySelectorAll('.item')].map(a => decodeURIComponent(a.hash.slice(1)))")

    def title(self):
        return self.one("#detail h3").text

    def displayed(self, css):
        return self.script("getComputedStyle(document.querySelector(arguments[0])).display", css) != "none"


@pytest.fixture
def page(chrome, run):
    """The page, freshly opened."""
    chrome.get_log("browser"), chrome.get_log("performance")
    yield Page(chrome, run.page).open()
    errors = [entry["message"] for entry in chrome.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert not errors, errors


def test_it_renders_and_asks_the_network_for_nothing(page, run):
    assert page.driver.title.endswith("5 questions about 2 videos")
    assert len(page.find(".panels figure")) == 5 and len(page.find(".tiles li")) == 6
    rows = [row.text.split()[0] for row in page.find("#results table")[0].find_elements("css selector", "tbody tr")]
    assert rows == ["Overall", "Causal", "Sequential", "Counterfactual", "Descriptive"]
    assert len(page.find(".failures tbody tr")) == 8
    assert len(page.listed()) == 5 and len(page.find("#detail .cell")) == 6
    assert page.script("[...document.querySelectorAll('#detail img')].every(i => i.complete && i.naturalWidth === 32)")
    assert "num_frames" in page.script("document.body.textContent")
    sent = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in urls if not url.startswith(("data:", "about:"))] == [run.page.as_uri()]


def test_hostile_texts_are_inert(page):
    assert page.script("window.hacked") is None
    page.open(f"#{ALPHA}/0")
    assert page.title() == HOSTILE and page.script("window.hacked") is None
    assert HOSTILE in page.one(".said").text
    assert not page.find("img[src='x']")
    page.open("#%E0%A4%A/0")  # a malformed escape
    assert page.title()


def test_deep_links(page):
    page.open(f"#{ALPHA}/1")
    assert page.title() == "Why does the ball roll?" and page.find("#detail .curve")
    assert page.one(".item[aria-current]").text.startswith("Why does")
    page.script("location.hash = arguments[0]", f"#{BETA}/a")
    assert page.title() == "Which two leave?" and not page.find("#detail .curve")  # it has no [LOC]
    page.one("#types button[data-key=Causal]").click()
    page.script("location.hash = arguments[0]", f"#{BETA}/b")  # whatever the filters are
    assert page.title() == "What would stay without the wind?" and f"{BETA}/b" in page.listed()
    page.open("#nothing/here")
    assert page.title()


def test_filters_and_sorting(page, run):
    chip = {button.get_attribute("data-key"): button for button in page.find(".chips button")}
    chip["Causal"].click()
    assert page.listed() == [f"{ALPHA}/1"] and chip["Causal"].get_attribute("aria-pressed") == "true"
    chip["failed"].click()
    assert page.listed() == [] and "none of 5" in page.one("#count").text
    chip["Causal"].click()
    assert page.listed() == [f"{BETA}/b"]
    chip["failed"].click()
    page.one(".failures button[data-name='wrong time']").click()
    assert page.listed() == [f"{ALPHA}/late"]
    page.open()
    by_loss = page.listed()
    loss = {f"{question['video']}/{question['id']}": question["loss"] for question in data_of(run.page)["questions"]}
    by_score = sorted(by_loss, key=lambda name: loss[name])  # equals keep their order
    for value, expected in (("score", by_score), ("video", sorted(by_loss)), ("loss", by_loss)):
        page.one(f"#sort option[value={value}]").click()
        assert page.listed() == expected, value


def test_search(page):
    page.press("/")
    assert page.driver.switch_to.active_element.get_attribute("id") == "search"
    page.press("LATE which")
    assert page.listed() == [f"{ALPHA}/late"]
    page.press(*["\ue003"] * 20, "beta_0110")
    assert sorted(page.listed()) == [f"{BETA}/a", f"{BETA}/b"]
    page.press("\ue00c")
    assert page.driver.switch_to.active_element.tag_name == "body"


def test_the_keyboard_moves(page):
    order = page.listed()

    def current():
        return page.script("decodeURIComponent(location.hash.slice(1))")

    page.press("j")
    assert current() == order[1]
    page.press("j", "\ue014")  # arrow right
    assert current() == order[3]
    page.press("k")
    assert current() == order[2] and page.script("document.querySelectorAll('.item[aria-current]').length") == 1
    page.press(*"jjjjj")
    assert current() == order[-1]
    page.press(*"kkkkkk")
    assert current() == order[0]
    page.find(".item")[0].click()
    page.driver.execute_script("document.querySelector('.item').focus()")
    page.press("\ue015", "\ue015")  # arrow down, in the list
    assert current() == order[2] and page.driver.switch_to.active_element.get_attribute("aria-current") == "true"


def test_layers_are_toggled(page):
    page.open(f"#{ALPHA}/1")
    for key, layer, css in (("g", "truth", "#detail .truth"), ("p", "prediction", "#detail .pred")):
        assert page.displayed(css)
        page.press(key)
        assert not page.displayed(css) and page.one(f"#toggle-{layer}").get_attribute("aria-pressed") == "false"
        page.one(f"#toggle-{layer}").click()
        assert page.displayed(css)
    page.press("f")
    assert page.script("getComputedStyle(document.querySelector('#detail img')).visibility") == "hidden"


def test_prediction_and_truth_are_drawn_where_they_are(page):
    page.open(f"#{ALPHA}/late")
    # The [LOC] of "wrong time" is high outside the window only: inside it the mask is drawn as emptied.
    cells = page.script(
        "[...document.querySelectorAll('#detail .cell')].map(cell =>"
        "['.foot.window', '.pred.emptied', '.truth.outside'].map(css => cell.querySelector(css) !== null))"
    )
    assert cells == [[True, True, False]] * 3 + [[False, False, True]] * 3
    box = page.script("(b => [b.x, b.y, b.width, b.height])(document.querySelector('#detail .truth').getBBox())")
    assert np.allclose(np.array(box) / 16, [0, 2, 6, 6], atol=0.1)  # object 1 on frame 0, in frame pixels


def test_the_large_view(page):
    page.open(f"#{ALPHA}/1")
    page.press("v")
    assert page.script("document.getElementById('viewer').open")
    note = page.one("#viewer-note").text
    page.press("j")
    assert page.one("#viewer-note").text != note and page.script("location.hash").endswith("/1")
    page.press("k")
    assert page.one("#viewer-note").text == note and "in the window" in note
    page.press("\ue00c")
    assert not page.script("document.getElementById('viewer').open")
    page.find("#detail .cell")[2].click()
    assert page.one("#viewer-note").text.startswith("frame 9")
    page.one("#close-viewer").click()


def test_help(page):
    page.press("?")
    assert page.script("document.getElementById('help').open") and "next question" in page.one("#help").text
    page.press("j", "\ue00c")
    assert not page.script("document.getElementById('help').open") and page.script("location.hash") == ""


def test_a_phone_shows_the_list_or_a_question(page):
    page.open(width=390, height=844)
    assert page.script("document.documentElement.scrollWidth") == 390
    assert not page.displayed("#detail") and page.displayed(".list")
    page.find(".item")[1].click()
    assert page.displayed("#detail") and not page.displayed(".list")
    assert page.script("document.documentElement.scrollWidth") == 390
    page.press("\ue00c")
    assert page.displayed(".list") and not page.displayed("#detail")
    page.open(f"#{ALPHA}/1", width=390, height=844)
    page.one("#detail .back").click()
    assert page.displayed(".list")


def test_controls_have_names_and_contrast(page):
    nameless = page.script(
        "[...document.querySelectorAll('button, a, select, input')].filter(e => !(e.getAttribute('aria-label') ||"
        "e.textContent.trim() || (e.labels && e.labels.length && e.labels[0].textContent.trim())))"
        ".map(e => e.outerHTML)"
    )
    assert nameless == []

    def luminance(colour):
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    def contrast(first, second):
        bright, dark = sorted((luminance(first), luminance(second)), reverse=True)
        return (bright + 0.05) / (dark + 0.05)

    for scheme in ("light", "dark"):
        features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
        page.open()
        colours = page.script(
            "(style => [style(document.body).backgroundColor, style(document.body).color,"
            "style(document.querySelector('.note')).color])(getComputedStyle)"
        )
        assert contrast(colours[0], colours[1]) > 7 and contrast(colours[0], colours[2]) > 4.5, (scheme, colours)
        badges = page.script("[...document.querySelectorAll('.badge')].map(b => getComputedStyle(b).backgroundColor)")
        assert all(contrast(badge, "rgb(255, 255, 255)") > 4.5 for badge in badges), (scheme, badges)
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
