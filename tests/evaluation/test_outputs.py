"""Outputs replace only what an evaluation wrote; results that were damaged are named."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from datasets.tokenization import load_tokenizer
from evaluate_groundmore import main
from evaluation.compare import main as compare
from evaluation.disagreements.__main__ import main as disagreements
from evaluation.engine.opening import attach_tokens
from evaluation.overlay_video import main as overlay
from evaluation.report.page import main as report_page
from model import presets
from tests.evaluation.report_run import evaluated_run  # noqa: F401

NOTES = "what I have thought about these results\n"
ALPHA, BETA = "alpha_0000_0004", "beta_0110_0114"


@pytest.fixture(scope="module")
def model_folder(project_root, tmp_path_factory):
    tokenizer = load_tokenizer(project_root / "assets" / "tiny_tokenizer")
    sizes = {"clip_layers": 1, "llm_layers": 1, "sam_layers": 1, "clip_hidden": 32, "llm_hidden": 32, "sam_hidden": 32}
    model = presets.build(presets.tiny(vocab_size=len(tokenizer), **sizes))
    attach_tokens(model, tokenizer)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture
def flags(model_folder, corpus_paths, tmp_path):
    shutil.copytree(corpus_paths[0].parent, tmp_path / "data")
    return [
        "--version", str(model_folder), "--meta_file", str(tmp_path / "data" / corpus_paths[0].name),
        "--video_root", str(tmp_path / "data" / corpus_paths[1].name), "--output_dir", str(tmp_path / "out"),
        "--num_frames", "2", "--force_seg_token", "--seg_only", "--workers", "0", "--max_new_tokens", "2",
        "--pictures", "1", "--device", "cpu",
    ]  # fmt: skip


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ("data/groundmore_test.json", ["--meta_file reads"]),
        ("data/link.json", ["--meta_file reads"]),
        ("notes.txt", ["did not write it"]),
        ("data/groundmore_videos", ["is a folder"]),
        ("out/summary.json", ["writes something else there"]),
        ("out/records/x.txt", ["writes something else there"]),
        ("out/digests.json", ["writes something else there"]),
    ],
)
def test_a_result_file_replaces_nothing_of_others(flags, tmp_path, capsys, result, words):
    (tmp_path / "notes.txt").write_text(NOTES)
    os.symlink(tmp_path / "data" / "groundmore_test.json", tmp_path / "data" / "link.json")
    before = tree(tmp_path)
    assert main([*flags, "--result_file", str(tmp_path / result)]) == 2
    error = capsys.readouterr().err
    assert "--result_file" in error and all(word in error for word in words)
    assert tree(tmp_path) == before


def test_a_result_of_an_earlier_run_is_replaced(flags, tmp_path):
    result = tmp_path / "result.txt"
    result.touch()
    assert main([*flags, "--result_file", str(result)]) == 0
    whole = result.read_bytes()
    result.write_bytes(whole[: len(whole) // 2])
    assert main([*flags, "--result_file", str(result)]) == 0 and result.read_bytes() == whole


@pytest.mark.parametrize(
    "name", ["summary.json", "scores.json", "report.html", "result.txt", "records/a/1.json", "scores/a/b", "run.json"]
)
def test_a_folder_with_foreign_files_is_refused(flags, tmp_path, capsys, name):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text(NOTES)
    for more in ([], ["--overwrite"]):
        assert main([*flags, *more]) == 2
        assert str(path) in capsys.readouterr().err
    assert tree(tmp_path / "out") == {name: NOTES.encode()}


def test_inputs_are_no_output_folders(flags, tmp_path, capsys, model_folder):
    for place in (flags[flags.index("--video_root") + 1], str(model_folder)):
        flags[flags.index("--output_dir") + 1] = place
        before = tree(tmp_path)
        assert main(flags) == 2 and "--output_dir" in capsys.readouterr().err
        assert tree(tmp_path) == before


def test_overwrite_deletes_only_what_belongs_to_the_run(flags, tmp_path):
    assert main(flags) == 0
    out = tmp_path / "out"
    foreign = [
        out / "records" / "mine.txt",
        out / "records" / ALPHA / "notes.json",
        out / "scores" / "b.json",
        out / "n",
    ]
    for path in foreign:
        path.write_text(NOTES)
    before = tree(out)
    assert main([*flags, "--overwrite", "--num_frames", "3", "--predict_only"]) == 0
    assert all(path.read_text() == NOTES for path in foreign)
    assert not (out / "scores" / f"{ALPHA}.json").exists()
    assert (out / "records" / ALPHA / "0.json").read_bytes() != before[f"records/{ALPHA}/0.json"]


def test_tilde_means_home_in_every_path(flags, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("--meta_file", "--video_root", "--output_dir"):
        place = flags.index(name)
        flags[place : place + 2] = [f"{name}={flags[place + 1].replace(str(tmp_path), '~')}"]
    monkeypatch.chdir(tmp_path)
    assert main([*flags, "--result_file=~/result.txt"]) == 0
    assert (tmp_path / "out" / "summary.json").is_file() and (tmp_path / "result.txt").is_file()
    given = [flag for flag in flags if flag.startswith(("--meta_file", "--video_root", "--output_dir"))]
    assert report_page(given) == 0
    assert overlay([*given, "--video", ALPHA, "--question", "0", "--sheet", "--out=~/sheet.png"]) == 0
    assert (tmp_path / "sheet.png").is_file()
    assert compare(["~/out", "--row_a", "all_empty", "--row_b", "model", "--json=~/difference.json"]) == 0
    assert (tmp_path / "difference.json").is_file() and not (tmp_path / "~").exists()


def test_the_other_programs_replace_only_their_own(run, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(run.output, out)
    given = ["--output_dir", str(out), "--meta_file", str(run.meta), "--video_root", str(run.root)]
    picture = [*given, "--video", ALPHA, "--question", "0"]
    rows = ["--row_a", "all_empty", "--row_b", "model"]
    programs = [
        ("notes.png", lambda path: overlay([*picture, "--sheet", "--out", str(path)])),
        ("notes.mp4", lambda path: overlay([*picture, "--no-all_frames", "--out", str(path)])),
        ("notes.json", lambda path: compare([str(out), *rows, "--json", str(path)])),
    ]
    for name, program in programs:
        path = tmp_path / name
        path.write_text(NOTES)
        assert program(path) == 2 and "did not write it" in capsys.readouterr().err
        assert path.read_text() == NOTES
        path.unlink()
        assert program(path) == program(path) == 0
    before = tree(out)
    for name in ("scores.json", "summary.json", "records/difference.json"):
        assert compare([str(out), *rows, "--json", str(out / name)]) == 2
    (out / "report.html").write_text(NOTES)
    assert report_page(given) == 2 and "did not write it" in capsys.readouterr().err
    (out / "report.html").write_bytes(before["report.html"])
    assert report_page(given) == 0 and tree(out) == before
    assert disagreements(["--case", "both_empty_zero"]) == 0


def test_a_digit_changed_in_a_result_is_noticed(run, tmp_path, capsys, project_root):
    for name in ("scores.json", "summary.json"):
        out = tmp_path / name
        shutil.copytree(run.output, out)
        text = (out / name).read_text()
        place = text.index("0.", text.index('"J"')) + 2
        (out / name).write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
        given = ["--output_dir", str(out), "--meta_file", str(run.meta), "--video_root", str(run.root)]
        for program in (
            lambda: compare([str(out), "--row_a", "all_empty", "--row_b", "model"]),  # noqa: B023
            lambda: report_page(given),  # noqa: B023
            lambda: overlay([*given, "--video", ALPHA, "--question", "0", "--sheet"]),  # noqa: B023
        ):
            assert program() == 2
            error = capsys.readouterr().err
            assert str(out / name) in error and "--score_only" in error


DAMAGES = {
    "scores.json": [
        "[]", "{}", "[1]", "null", "[NaN]", "\ufeff[]", '[{"video_id": 1}]', "[" * 100_000, "1" * 5000,
        lambda value: value[0].update(video_id=["x"]),
        lambda value: value[0]["rows"].update(model=3),
        lambda value: value[0]["rows"]["model"].update(JF="0.5"),
        lambda value: value[0].update(q_type=["Causal"]),
        lambda value: value[0].update(question=None),
        lambda value: value[0]["rows"].pop("model"),
        lambda value: value.append(value[0]),
    ],
    "summary.json": [
        "[]", "{}", "null", '{"format": "mora-summary-2"}', "nonsense",
        lambda value: value.update(protocol=3),
        lambda value: value["protocol"].update(num_frames="8"),
        lambda value: value["protocol"].update(unheard_of=1),
        lambda value: value["protocol"].update(window=["clipped"]),
        lambda value: value["rows"].pop("model"),
        lambda value: value["rows"]["model"]["table"]["Overall"].update(JF=3),
        lambda value: value.update(counts=[]),
        lambda value: value.update(failures={"a": 1}),
    ],
    "digests.json": ["[]", "nonsense", '{"format": "mora-digests-1", "files": 3}'],
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_results_are_named_and_never_a_traceback(run, tmp_path, capsys, name, monkeypatch):
    """Also those of an older version, which have no digests."""
    out = tmp_path / "out"
    shutil.copytree(run.output, out)
    if name != "digests.json":
        (out / "digests.json").unlink()
    given = ["--output_dir", str(out), "--meta_file", str(run.meta), "--video_root", str(run.root)]
    whole = (out / name).read_text()
    for damage in DAMAGES[name]:
        value = json.loads(whole)
        text = damage if isinstance(damage, str) else (damage(value), json.dumps(value))[1]
        (out / name).write_text(text)
        codes = [report_page(given), compare([str(out), "--row_a", "all_empty", "--row_b", "model"])]
        error = capsys.readouterr().err
        assert 2 in codes and name in error and "Traceback" not in error, (damage, codes, error)


def test_the_demos_tables_refuse_what_is_damaged(run, tmp_path, project_root, capsys, monkeypatch):
    import importlib.util

    spec = importlib.util.spec_from_file_location("demo_summary", project_root / "scripts" / "demo_summary.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    for kind in ("groundmore", "shuffled"):
        shutil.copytree(run.output, tmp_path / "eval" / kind)
    monkeypatch.setattr("sys.argv", ["demo_summary.py", str(tmp_path)])
    assert demo.main() == demo.main() == 0 and (tmp_path / "summary.md").is_file()
    for kind in ("groundmore", "shuffled"):
        path = tmp_path / "eval" / kind / "summary.json"
        whole = path.read_text()
        for text in (whole.replace("0.", "1.", 1), "{}", "[", "3"):
            path.write_text(text)
            assert demo.main() == 2 and kind in capsys.readouterr().err
        path.with_name("digests.json").unlink()
        path.write_text('{"rows": {"model": 3}}')
        assert demo.main() == 2 and "summary.json" in capsys.readouterr().err
        path.write_text(whole)
    (tmp_path / "summary.md").write_text(NOTES)
    assert demo.main() == 2 and (tmp_path / "summary.md").read_text() == NOTES
