"""The doctor as a program: everything at once, exit status, JSON, the contact sheet, processes."""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.corpora.groundmore import GroundMoRe
from datasets.doctor import clip, run
from datasets.doctor.__main__ import main
from datasets.doctor.examination import Options
from datasets.doctor.findings import GROUPS, KINDS, SEVERITIES, Finding, Findings, Picture
from datasets.doctor.report import as_json, as_text
from datasets.doctor.run import examine_corpus
from datasets.doctor.sheet import draw, draw_sheet, moving_region, worst
from datasets.synthetic import CorpusPlan, WorldSettings, write_corpora
from utils.errors import DataError
from utils.masks import read_id_mask, write_id_mask


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    root = tmp_path_factory.mktemp("doctor")
    settings = WorldSettings(height=48, width=64, num_frames=24)
    write_corpora(root, [CorpusPlan("groundmore", "train", 3, 4, settings)])
    return root


@pytest.fixture
def ruined(healthy, tmp_path):
    """A corpus with a dozen damages, and where each of them is: {(kind, video, query)}."""
    root = Path(shutil.copytree(healthy, tmp_path / "corpus"))
    meta = root / "GroundMoRe" / "trainval_v2.json"
    value = json.loads(meta.read_text())
    first, second, third, fourth = value["videos"]
    folder = root / "GroundMoRe" / "groundmore_videos"
    frames = {video: sorted((folder / video / "images").iterdir()) for video in value["videos"]}
    masks = {video: sorted((folder / video / "masks").iterdir()) for video in value["videos"]}
    questions = {video: entry["questions"] for video, entry in value["videos"].items()}
    questions[first]["0"]["answer"] = ""
    questions[first]["1"]["q_type"] = "Odd"
    questions[first]["2"]["action_start"] = "later"
    questions[second]["0"]["obj_id"] = "99"
    questions[second]["1"]["obj_id"] = "a"
    questions[third]["twin"] = {**questions[third]["0"], "answer": "another thing"}
    frames[first][2].write_bytes(b"")
    frames[first][9].write_bytes(frames[first][9].read_bytes()[:300])
    Image.open(masks[second][1]).convert("RGB").save(masks[second][1])
    write_id_mask(masks[second][2], read_id_mask(masks[second][2])[:-4])
    masks[third][0].write_text("not an image")
    frames[third][5].unlink()
    shutil.rmtree(folder / fourth)
    shutil.copytree(folder / third, folder / "nobody_0000_0004")
    meta.write_text(json.dumps(value))
    expected = {
        ("answer-missing", first, "0"),
        ("unknown-type", first, "1"),
        ("bad-time", first, "2"),
        ("object-absent", second, "0"),
        ("bad-object-id", second, "1"),
        ("contradicting-text", third, "twin"),
        ("frame-unreadable", first, ""),
        ("mask-mode", second, ""),
        ("mask-size", second, ""),
        ("mask-unreadable", third, ""),
        ("frame-number-hole", third, ""),
        ("mask-orphan", third, ""),
        ("video-without-folder", fourth, ""),
        ("folder-without-annotation", "nobody_0000_0004", ""),
    }
    return root, expected


def test_everything_is_found_at_once(ruined, tmp_path, capsys):
    root, expected = ruined
    report, sheet = tmp_path / "out" / "report.json", tmp_path / "out" / "sheet.png"
    flags = ["--json", str(report), "--sheet", str(sheet), "--workers", "1", "--examples", "1"]
    assert main(["groundmore", str(root), *flags]) == 1
    value = json.loads(report.read_text())
    assert {(row["kind"], row["video"], row["query"]) for row in value["findings"]} == expected
    told = capsys.readouterr().out
    for kind, _, _ in expected:
        assert f"{kind} (1)" in told
    assert f"Found: {value['totals']['error']} errors, 3 warnings, 0 notes." in told

    with Image.open(sheet) as image:
        picture = np.array(image)
    assert picture.shape[1] > 3 * 240 and picture.shape[0] > 300
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1000

    assert set(value) == {
        "schema", "corpus", "folder", "fast", "partial", "counts", "totals", "kinds", "findings", "drift"
    }  # fmt: skip
    keys = {"kind", "severity", "split", "video", "query", "files", "count", "message"}
    assert all(set(row) == keys and row["severity"] in SEVERITIES and row["message"] for row in value["findings"])
    assert all(set(row) == {"severity", "group", "title", "found", "listed"} for row in value["kinds"].values())
    assert sum(row["found"] for row in value["kinds"].values()) == sum(value["totals"].values())
    assert {"split", "video", "status", "shift", "edges", "motion"} == set(value["drift"][0])
    bad_frames = next(row for row in value["findings"] if row["kind"] == "frame-unreadable")
    assert bad_frames["count"] == 2 and len(bad_frames["files"]) == 2
    with pytest.raises(DataError):
        GroundMoRe(root / "GroundMoRe" / "trainval_v2.json", root / "GroundMoRe" / "groundmore_videos")


def test_several_processes_report_the_same(ruined):
    root, _ = ruined
    alone, many = (examine_corpus("groundmore", root, Options(), workers) for workers in (1, 2))
    assert as_json(alone) == as_json(many) and as_text(alone, 3) == as_text(many, 3)


def test_parts_of_a_corpus(ruined):
    root, expected = ruined
    second = next(video for kind, video, _ in expected if kind == "mask-mode")
    examined = examine_corpus("groundmore", root, Options(videos=(second,)))
    assert {finding.video for finding in examined.findings} == {second}
    assert "Some videos were left out" in as_text(examined, 1)
    examined = examine_corpus("groundmore", root, Options(limit=1))
    assert examined.counts["trainval_v2"]["videos"] == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--split", "test"], "--split test"),
        (["--video", "nowhere"], "--video nowhere"),
        (["--json", "{root}"], "is a folder"),
        (["--sheet", "{root}/synthetic.json/x.png"], "is a file"),
    ],
)
def test_what_cannot_be_run(healthy, tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    flags = [flag.format(root=healthy) for flag in flags]
    assert main(["groundmore", str(healthy), "--workers", "1", *flags]) == 2
    assert words in capsys.readouterr().err


def test_folders_that_hold_no_corpus(tmp_path, capsys):
    for corpus in ("groundmore", "refer_youtube_vos", "mevis"):
        assert main([corpus, str(tmp_path)]) == 2
        assert main([corpus, str(tmp_path / "nowhere")]) == 2
    told = capsys.readouterr().err
    assert "give the folder that holds them" in told and "no such folder" in told
    with pytest.raises(SystemExit) as stop:
        main(["movies", "x"])
    assert stop.value.code == 2
    assert main(["mevis", "x", "--limit", "0", "--cells", "-1"]) == 2
    told = capsys.readouterr().err
    assert "--limit: 0 is too small; at least 1" in told and "--cells: -1 is too small" in told


def test_the_sheet_can_be_left_out_and_has_a_place_of_its_own(ruined, tmp_path, monkeypatch):
    root, _ = ruined
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert main(["groundmore", str(root), "--workers", "1", "--no-sheet"]) == 1 and not os.listdir()
    assert main(["groundmore", str(root), "--workers", "1", "--cells", "1"]) == 1
    assert os.listdir() == ["doctor_groundmore.png"]


def test_what_the_reader_alone_refuses_is_told(healthy, monkeypatch):
    def refuse(self, split):
        raise DataError("no usable entry")

    monkeypatch.setattr("datasets.doctor.groundmore.GroundMoReExamination.open_reader", refuse)
    examined = examine_corpus("groundmore", healthy, Options())
    (found,) = examined.findings.of("reader-refuses")
    assert found.message == "no usable entry" and examined.exit_code(strict=False) == 1


def test_a_clip_that_cannot_be_examined_does_not_end_the_run(healthy, monkeypatch):
    honest = clip.look_at_mask
    target = sorted((healthy / "GroundMoRe" / "groundmore_videos").iterdir())[1].name

    def explode(mask, *details):
        if target in str(mask):
            raise RuntimeError("decoder fault")
        return honest(mask, *details)

    monkeypatch.setattr(clip, "look_at_mask", explode)
    examined = examine_corpus("groundmore", healthy, Options())
    (found,) = examined.findings.of("examination-failed")
    assert found.video == target and "decoder fault" in found.message
    assert len(examined.drifts) == 3


def die(task):
    """Stands for a decoder that kills its process on one clip."""
    if task.video == "b":
        os._exit(1)
    return clip.ClipReport(task.split, task.video)


def test_a_killed_process_costs_one_clip(monkeypatch):
    monkeypatch.setattr(run, "examine", die)
    tasks = [clip.ClipTask("s", video, ()) for video in "abcdefgh"]
    reports = list(run.reports(iter(tasks), workers=2))
    assert [report.video for report in reports] == list("abcdefgh")
    failed = {report.video: [finding.kind for finding in report.findings] for report in reports if report.findings}
    assert failed == {"b": ["examination-failed"]}


def test_a_pool_that_broke_before_a_clip_was_handed_to_it_costs_none(monkeypatch):
    made, make = [], run._pool

    def broken_at_first(workers):
        made.append(make(workers))
        if len(made) == 1:
            with pytest.raises(BrokenProcessPool):
                made[0].submit(os._exit, 1).result()
        return made[-1]

    monkeypatch.setattr(run, "_pool", broken_at_first)
    monkeypatch.setattr(run, "examine", die)
    reports = list(run.reports((clip.ClipTask("s", video, ()) for video in "acd"), workers=2))
    assert [report.video for report in reports] == list("acd") and not any(report.findings for report in reports)


def test_tasks_are_taken_as_they_are_needed(monkeypatch):
    """A corpus of any size is never held at once."""

    class Instant:
        def submit(self, _, task):
            return self

        def result(self):
            return "report"

        def shutdown(self, **_):
            pass

    monkeypatch.setattr(run, "_pool", lambda workers: Instant())
    taken = deque()
    reports = run.reports((taken.append(k) or k for k in range(100)), workers=2)
    next(reports)
    assert len(taken) == 6
    assert len(list(reports)) == 99


def test_memory_for_findings_is_bounded_and_the_worst_come_first():
    findings = Findings(keep=3)
    for number in range(5):
        findings.put(Finding("drift-suspect", f"{number}", score=number))
    assert findings.totals["drift-suspect"] == 5
    assert [finding.message for finding in findings.of("drift-suspect")] == ["2", "1", "0"]
    with pytest.raises(KeyError):
        findings.put(Finding("no-such-kind", ""))


def test_every_kind_is_described_and_used(project_root):
    text = (project_root / "docs" / "data.md").read_text()
    sources = [*(project_root / "datasets").glob("*.py"), *(project_root / "datasets" / "corpora").glob("*.py")]
    sources += (project_root / "datasets" / "doctor").glob("*.py")
    used = "".join(path.read_text() for path in sources)
    for name, kind in KINDS.items():
        assert kind.severity in SEVERITIES and kind.group in GROUPS and kind.title
        assert f"| `{name}` | {kind.severity} | {kind.title} |" in text, f"docs/data.md must describe {name}"
        assert f'"{name}"' in used


def test_pictures(tmp_path):
    rng = np.random.default_rng(0)
    frame = tmp_path / "frame.png"
    Image.fromarray(rng.integers(0, 90, (40, 60, 3), dtype=np.uint8)).save(frame)
    ids = np.zeros((40, 60), dtype=np.uint8)
    ids[10:30, 20:40] = 3
    write_id_mask(tmp_path / "mask.png", ids)
    plain, filled = draw(Picture(frame)), draw(Picture(frame, tmp_path / "mask.png"))
    assert plain.shape == (40, 60, 3)
    scale = filled.shape[0] // 40
    middle, corner = filled[20 * scale, 30 * scale].astype(int), filled[2 * scale, 2 * scale].astype(int)
    assert np.abs(middle - plain[20, 30]).max() > 20 and np.abs(corner - plain[2, 2]).max() == 0
    grey = draw(Picture(tmp_path / "gone.png"))
    assert len(np.unique(grey)) == 1
    write_id_mask(tmp_path / "small.png", ids[::2, ::2])
    assert draw(Picture(frame, tmp_path / "small.png")).shape == filled.shape
    moved = Finding("drift-suspect", "m", pictures=(Picture(frame, tmp_path / "mask.png", tmp_path / "mask.png"),))
    sized = [Finding("mask-size", "m", pictures=(Picture(frame, tmp_path / "small.png"),))] * 9
    findings = Findings()
    for finding in (moved, *sized):
        findings.put(finding)
    chosen = worst(findings, 5)
    assert [finding.kind for finding in chosen] == ["mask-size"] * 3 + ["drift-suspect"]
    assert draw_sheet(chosen, "title").ndim == 3


def test_a_drift_suspect_is_cut_to_the_object_that_moves(tmp_path):
    filed, fitting = np.zeros((2, 90, 160), dtype=np.uint8)
    filed[5:15, 5:15] = fitting[5:15, 5:15] = 1  # rests
    filed[40:50, 100:112], fitting[43:53, 106:118] = 2, 2
    for name, ids in (("filed", filed), ("fitting", fitting)):
        write_id_mask(tmp_path / f"{name}.png", ids)
    rows, columns = moving_region(Picture(tmp_path / "no.jpg", tmp_path / "filed.png", tmp_path / "fitting.png"))
    assert rows.start <= 40 and rows.stop >= 53 and columns.start <= 100 and columns.stop >= 118
    assert rows.stop - rows.start < 90 / 2
    assert abs((columns.stop - columns.start) / (rows.stop - rows.start) - 160 / 90) < 0.1
    assert moving_region(Picture(tmp_path / "no.jpg", tmp_path / "filed.png", tmp_path / "filed.png")) is None
