"""evaluation/report_page.py: the file; and what it does in a real browser, which has no network."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from datasets.groundmore import GroundMoRe
from evaluation import report_page
from evaluation.protocol import Protocol
from evaluation.records import Record, frames_digest, open_run, read_run, write_record
from evaluation.report import write_results
from evaluation.report_page import embedded_json, write_report_page
from evaluation.report_page_data import choose
from evaluation.report_page_media import MAX_PATH, outline, outline_grid, thumbnail
from evaluation.score import score_corpus
from evaluation.summary import summarise
from utils.masks import encode_rle

HOSTILE = """<script>window.hacked = 1</script></script><img src=x onerror="window.hacked=2">'"&amp; ${title}"""
ALPHA, BETA = "alpha_0000_0004", "beta_0110_0114"
PROTOCOL = Protocol(num_frames=6, loc_refine=True)
NAMES = {
    (ALPHA, "0"): "good", (ALPHA, "1"): "wrong object", (ALPHA, "late"): "wrong time",
    (BETA, "a"): "no token", (BETA, "b"): "failed",
}  # fmt: skip


def write_records(videos, output, mark):
    """One record per question, each with the failure that NAMES gives it."""
    for video in videos:
        listed = PROTOCOL.sample(len(video.frame_paths))
        indices = np.unique(listed)
        for query in video.queries:
            name = NAMES[video.video_id, query.query_id]
            about = dict(
                video_id=video.video_id, query_id=query.query_id, question=query.text, fingerprint=mark,
                num_clip_frames=len(video.frame_paths), listed_frames=listed.tolist(),
                frames=frames_digest(video, indices),
            )  # fmt: skip
            if name == "failed":
                write_record(output, Record(status="failed", reason=f"DataError: {HOSTILE}", **about))
                continue
            other = SimpleNamespace(object_ids=(1,))
            masks = [video.read_object_mask(other if name == "wrong object" else query, int(i)) for i in indices]
            inside = query.in_window(indices)
            probabilities = np.where(~inside if name == "wrong time" else inside, 0.9, 0.125)
            write_record(
                output,
                Record(
                    status="ok", frame_indices=indices.tolist(), size=list(masks[0].shape),
                    masks=[None if name == "no token" else encode_rle(mask) for mask in masks],
                    loc_probs=None if name == "no token" else probabilities.tolist(),
                    answers=[f"It is {HOSTILE} [SEG]."], **about,
                ),
            )  # fmt: skip


@pytest.fixture(scope="module")
def run(corpus_paths, tmp_path_factory):
    """A scored evaluation of five questions, one of them with a hostile text, and its page."""
    meta_file, video_root = corpus_paths
    meta = json.loads(meta_file.read_text())
    questions = meta["videos"][ALPHA]["questions"]
    questions["late"] = {**questions["0"], "question": "Which one is late?", "q_type": "Counterfactual"}
    questions["0"] |= {"question": HOSTILE, "answer": HOSTILE}
    output = tmp_path_factory.mktemp("run")
    own_meta = output / "meta.json"
    own_meta.write_text(json.dumps(meta))
    corpus = GroundMoRe(own_meta, video_root)
    videos = [corpus[index] for index in range(len(corpus))]
    mark = open_run(output, {"weights": "w"}, about={"version": f"models/{HOSTILE}"})
    write_records(videos, output, mark)
    scores = score_corpus(videos, output, PROTOCOL, mark)
    summary = summarise(scores, PROTOCOL, {**read_run(output), "selection": {"limit": None}})
    write_results(output, output / "result.txt", scores, summary, PROTOCOL)
    page = write_report_page(videos, output, scores, summary, PROTOCOL)
    return SimpleNamespace(
        output=output, videos=videos, scores=scores, summary=summary, page=page, meta=own_meta, root=video_root
    )


def data_of(page):
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S).group(1))


def test_the_failures_are_named(run):
    data = data_of(run.page)
    assert {(q["video"], q["id"]): q["name"] for q in data["questions"]} == NAMES
    losses = [q["loss"] for q in data["questions"]]
    assert losses == sorted(losses, reverse=True)


def test_equal_inputs_give_equal_bytes(run):
    before = run.page.read_bytes()
    write_report_page(run.videos, run.output, run.scores, run.summary, PROTOCOL)
    assert run.page.read_bytes() == before
    assert len(before) < 400_000


def test_nothing_is_loaded_from_outside(run):
    text = run.page.read_text(encoding="utf-8")
    outside = re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.S)
    assert set(re.findall(r"https?://[^\"'\s)]+", outside)) == {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"<(?:link|script|img|iframe)[^>]+(?:src|href)=[\"'](?!data:,)", outside)
    assert "@import" not in outside and "url(" not in outside


def test_the_policy_allows_the_pages_own_sources_only(run):
    text = run.page.read_text(encoding="utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text).group(1)
    assert policy.startswith("default-src 'none'")
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        source = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.S).group(1)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}'" in policy


def test_hostile_texts_are_text(run):
    text = run.page.read_text(encoding="utf-8")
    assert "<script>window" not in text and "<img" not in text
    assert "&lt;script&gt;window.hacked" in text  # the reason in the table of failures
    assert any(q["text"] == HOSTILE for q in data_of(run.page)["questions"])
    assert json.loads(embedded_json({"x": "</script><!--\u2028\ud800&"})) == {"x": "</script><!--\u2028\ud800&"}
    assert not set("<>&\u2028") & set(embedded_json("</script><!--\u2028\ud800&"))


def test_frames_of_a_video_are_stored_once(run):
    data = data_of(run.page)
    assert sorted(data["videos"]) == [ALPHA, BETA]
    images = data["videos"][ALPHA]["images"]
    assert len(images) == 6
    picture = np.array(Image.open(io.BytesIO(base64.b64decode(images[2]))).convert("RGB"))
    source = np.array(Image.open(run.videos[0].frame_paths[data["videos"][ALPHA]["index"][2]]))
    assert np.array_equal(picture, source)  # small frames are kept without loss


def test_limit_and_choice(run, tmp_path):
    shutil.copytree(run.output / "records", tmp_path / "records")
    limited = write_report_page(run.videos, tmp_path, run.scores, run.summary, PROTOCOL, limit=2)
    data = data_of(limited)
    assert len(data["questions"]) == 5
    assert ["picture" in question for question in data["questions"]] == [True, False, False, False, True]
    chosen = write_report_page(run.videos, tmp_path, run.scores, run.summary, PROTOCOL, only={(ALPHA, "1")})
    assert [q["id"] for q in data_of(chosen)["questions"] if "picture" in q] == ["1"]
    assert write_report_page(run.videos, tmp_path, run.scores, run.summary, PROTOCOL, limit=0) is None
    assert choose(10, 4) == [0, 1, 2, 9] and choose(3, 4) == [0, 1, 2] and choose(9, 1) == [0]


def test_a_frame_or_truth_that_cannot_be_read_leaves_a_page(run, tmp_path):
    shutil.copytree(run.root, tmp_path / "videos")
    shutil.copytree(run.output / "records", tmp_path / "records")
    (tmp_path / "videos" / BETA / "images" / "0000000.jpg").write_bytes(b"no picture")
    next((tmp_path / "videos" / BETA / "masks").iterdir()).write_bytes(b"no mask")
    corpus = GroundMoRe(run.meta, tmp_path / "videos")
    data = data_of(write_report_page([corpus[0], corpus[1]], tmp_path, run.scores, run.summary, PROTOCOL))
    assert data["videos"][BETA]["images"][0] is None and data["videos"][BETA]["images"][1]


def test_the_program_makes_the_same_page_again(run, capsys):
    before = run.page.read_bytes()
    flags = ["--output_dir", str(run.output), "--meta_file", str(run.meta), "--video_root", str(run.root)]
    assert report_page.main(flags) == 0
    assert run.page.read_bytes() == before and "report.html" in capsys.readouterr().out
    assert report_page.main([*flags, "--video", ALPHA, "--question", "1", "--question", "b"]) == 0
    assert [q["id"] for q in data_of(run.page)["questions"] if "picture" in q] == ["1"]
    assert report_page.main(flags) == 0
    capsys.readouterr()
    for wrong, message in (
        (["--question", "none"], "no such question was scored"),
        (["--limit", "0"], "at least 1"),
        (["--output_dir", str(run.output / "records")], "no such file"),
    ):
        assert report_page.main([*flags, *wrong]) == 2
        assert message in capsys.readouterr().err


def test_results_of_an_older_version_are_refused(run, tmp_path, capsys):
    flags = ["--output_dir", str(tmp_path), "--meta_file", str(run.meta), "--video_root", str(run.root)]
    shutil.copy(run.output / "summary.json", tmp_path)
    (tmp_path / "scores.json").write_text(json.dumps([{"video_id": ALPHA, "query_id": "0"}]))
    assert report_page.main(flags) == 2 and "no 'frames' or 'objects'" in capsys.readouterr().err
    (tmp_path / "summary.json").write_text(json.dumps({**run.summary, "format": "mora-summary-1"}))
    assert report_page.main(flags) == 2 and "--score_only" in capsys.readouterr().err


def area_of(path, width, height):
    """Pixels that an outline encloses, by the even-odd rule, as a browser would fill it."""
    filled = np.zeros((height, width), dtype=np.uint8)
    for part in path.split("M")[1:]:
        start, steps = part.rstrip("z").split("l")
        moves = np.array(steps.split(), dtype=int).reshape(-1, 2)
        points = np.cumsum(np.concatenate([np.array([start.split()], dtype=int), moves]), axis=0)
        ring = np.zeros_like(filled)
        cv2.fillPoly(ring, [points.astype(np.int32)], 1)
        filled ^= ring
    return filled.astype(bool)


def test_outlines_enclose_their_masks():
    mask = np.zeros((24, 32), dtype=bool)
    mask[4:20, 6:26] = True
    mask[9:14, 12:18] = False
    width, height = outline_grid(24, 32)
    assert (width, height) == (512, 384)
    large = mask.repeat(16, axis=0).repeat(16, axis=1)
    drawn = area_of(outline(mask), width, height)
    assert (drawn & large).sum() / (drawn | large).sum() > 0.97
    assert outline(np.zeros((24, 32), dtype=bool)) == ""


def test_outlines_of_tiny_and_ragged_masks():
    speck = np.zeros((2160, 3840), dtype=bool)
    speck[700, 900] = True
    assert outline_grid(2160, 3840) == (512, 288)
    assert outline(speck).startswith("M120 93")
    assert 0 < len(outline(np.random.default_rng(0).random((480, 640)) > 0.5)) <= MAX_PATH


def test_large_frames_fit_their_share(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (90, 160, 3)).astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    Image.fromarray(noise).save(tmp_path / "frame.jpg", quality=90)
    assert len(base64.b64decode(thumbnail(tmp_path / "frame.jpg", 8000))) <= 8000
    assert thumbnail(tmp_path / "none.jpg", 8000) is None


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
