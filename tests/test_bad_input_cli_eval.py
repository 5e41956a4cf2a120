"""Bad input at the command line of evaluate_groundmore.py: a bad question fails alone and is named, a bad flag or
folder stops the run with one screen, and no record is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from datasets.tokenization import load_tokenizer
from model import presets
from tests.cli_server import clear_error, programs  # noqa: F401 - a fixture
from tests.evaluation.conftest import FRAMES, write_corpus

pytestmark = pytest.mark.slow

ALPHA = "alpha_0000_0004"
FIRST = f"{ALPHA}/images/frame_000000.jpg"


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    """A corpus of two clips and four questions; tests change copies."""
    root = tmp_path_factory.mktemp("clean")
    write_corpus(root)
    return root


@pytest.fixture
def corpus(clean, tmp_path) -> Path:
    """A copy of the clean corpus."""
    shutil.copytree(clean, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def base(project_root, tmp_path_factory) -> Path:
    """An exported model with random weights."""
    tokenizer = load_tokenizer(project_root / "assets" / "tiny_tokenizer")
    ids = {"seg_token_id": tokenizer.id_of("[SEG]"), "loc_token_id": tokenizer.id_of("[LOC]")}
    fields = {"clip_layers": 1, "llm_layers": 1, "sam_layers": 1, "clip_hidden": 32, "llm_hidden": 32, "sam_hidden": 32}
    folder = tmp_path_factory.mktemp("base")
    presets.build(presets.tiny(vocab_size=len(tokenizer), **ids, **fields)).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture
def evaluate(programs, base, clean, tmp_path):  # noqa: F811
    """Runs evaluate_groundmore.py, over the copied corpus if there is one."""

    def run(*extra: object, model: Path = base, limit: int = 0):
        data = tmp_path / "data" if (tmp_path / "data").exists() else clean
        return programs(
            "evaluate_groundmore.py", "--version", model, "--meta_file", data / "groundmore_test.json", "--video_root",
            data / "groundmore_videos", "--output_dir", tmp_path / "out", "--num_frames", 4, "--force_seg_token",
            "--force_loc_token", "--use_loc_refine", "--max_new_tokens", 2, "--workers", 0, "--pictures", 0, *extra,
            limit=limit,
        )  # fmt: skip

    return run


def edit(corpus: Path, change) -> None:
    """Change the JSON: ``change(videos)``."""
    path = corpus / "groundmore_test.json"
    content = json.loads(path.read_text())
    change(content["videos"])
    path.write_text(json.dumps(content))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def resize(path: Path) -> None:
    Image.open(path).resize((40, 40), Image.Resampling.NEAREST).save(path)


def recolour(path: Path) -> None:
    Image.open(path).convert("RGB").save(path)


def records(folder: Path) -> dict[str, dict]:
    """Records by file name."""
    return {str(path.relative_to(folder)): json.loads(path.read_text()) for path in folder.rglob("records/*/*.json")}


def failures(folder: Path) -> dict[str, str]:
    """Reason of every question that failed in the summary, after checking its counts."""
    summary = json.loads((folder / "summary.json").read_text())
    listed = {f"{failure['video_id']}/{failure['query_id']}": failure["reason"] for failure in summary["failures"]}
    assert summary["counts"]["questions"] == 4 and summary["counts"]["questions_failed"] == len(listed)
    return listed


DAMAGED_FILES = {
    "truncated frame": (FIRST, truncate, "cannot read this frame"),
    "empty frame": (FIRST, lambda path: path.write_bytes(b""), "the file is empty"),
    "frame of another size": (FIRST, resize, "40 x 40"),
    "mask in colours": (f"{ALPHA}/masks/frame_000000.png", recolour, "mode RGB"),
    "mask of another size": (f"{ALPHA}/masks/frame_000000.png", resize, "they must agree"),
}


@pytest.mark.parametrize("name", DAMAGED_FILES)
def test_a_damaged_file_fails_the_questions_of_its_clip_only(corpus, clean, evaluate, tmp_path, name):
    file, damage, words = DAMAGED_FILES[name]
    damage(corpus / "groundmore_videos" / file)
    done = evaluate()
    clear_error(done, "FAILED: 2 questions", Path(file).name)
    assert done.status == 1
    reasons = failures(tmp_path / "out")
    assert set(reasons) == {f"{ALPHA}/0", f"{ALPHA}/1"}
    assert all(Path(file).stem in reason and words in reason for reason in reasons.values()), reasons
    shutil.copy(clean / "groundmore_videos" / file, corpus / "groundmore_videos" / file)
    done = evaluate()
    assert done.status == 0 and failures(tmp_path / "out") == {}, done.err
    kept = 4 if "masks" in file else 2
    assert f"predicted {4 - kept} questions, kept {kept} recorded earlier" in done.out


WRONG_QUESTIONS = {
    "token": ({"question": "What is [SEG] here?"}, "holds [SEG]", "reword it"),
    "absent id": ({"obj_id": "77"}, "object id 77 of query 1 is in none of the clip's masks", "correct the id"),
}


@pytest.mark.parametrize("name", WRONG_QUESTIONS)
def test_a_question_that_cannot_be_answered_fails_alone(corpus, evaluate, tmp_path, name):
    change, *words = WRONG_QUESTIONS[name]
    edit(corpus, lambda videos: videos[ALPHA]["questions"]["1"].update(change))
    done = evaluate()
    clear_error(done, "FAILED: 1 questions", *words)
    assert done.status == 1 and set(failures(tmp_path / "out")) == {f"{ALPHA}/1"}


def test_all_mistakes_of_an_annotation_file_at_once(corpus, evaluate, tmp_path):
    def change(videos):
        good = dict(videos[ALPHA]["questions"]["0"])
        videos[ALPHA]["questions"] |= {
            "type": {**good, "q_type": "Magical"},
            "outside": {**good, "action_start": "30:00", "action_end": "31:00"},
            "empty": {**good, "action_end": good["action_start"]},
            "bare": {"question": "What moves?"},
        }
        videos["nowhere_0000_0002"] = {"questions": {"0": good}}

    edit(corpus, change)
    done = evaluate()
    clear_error(
        done, "groundmore_test.json", f"video {ALPHA}, question type: unknown q_type 'Magical'",
        f"video {ALPHA}, question outside: the action's window", f"video {ALPHA}, question empty: the action's window",
        f"video {ALPHA}, question bare: has no 'obj_id'", "video nowhere_0000_0002", "cannot list this folder",
    )  # fmt: skip
    assert done.status == 2 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"videos": {"a": \n [1,2 }'])
def test_what_is_no_annotation_file(corpus, evaluate, text):
    (corpus / "groundmore_test.json").write_text(text)
    clear_error(evaluate(), "groundmore_test.json", "file")


def test_odd_but_possible_input_is_evaluated(corpus, evaluate, tmp_path):
    """Any script, 3000 characters, a clip of one frame, more frames asked for than there are."""

    def change(videos):
        first, second = videos[ALPHA]["questions"].values()
        first.update(question="Was bewegt sich — 谁在动? 🟥 \u202eabc?")
        second.update(question="What moves " + "and moves " * 300 + "?", action_start="00:00", obj_id="1")

    edit(corpus, change)
    for kind in ("images", "masks"):
        for path in sorted((corpus / "groundmore_videos" / ALPHA / kind).iterdir())[1:]:
            path.unlink()
    done = evaluate("--num_frames", FRAMES + 6)
    assert done.status == 0, done.out + done.err
    assert failures(tmp_path / "out") == {}
    record = records(tmp_path / "out")[f"records/{ALPHA}/0.json"]
    assert record["frame_indices"] == [0] and len(record["listed_frames"]) == FRAMES + 6


WRONG_FLAGS = {
    "threshold": (("--loc_threshold", 7), "loc_threshold: a probability from 0 to 1"),
    "no number": (("--loc_threshold", "nan"), "loc_threshold: a probability from 0 to 1"),
    "counts": (("--num_frames", 0, "--max_new_tokens", -1), "num_frames: must be", "max_new_tokens: must be"),
    "contradiction": (("--seg_only",), "seg_only", "drop one side"),
    "GPU": (("--device", "cuda"), "--device: cuda is asked for, but torch sees no GPU", "--device cpu"),
    "half precision": (("--precision", "fp16"), "--precision: fp16 needs a GPU"),
    "paths": (("--meta_file", "/nowhere/m", "--video_root", "/nowhere/v"), "--meta_file: /now", "--video_root: /now"),
    "no video": (("--video", "gamma"), "--video gamma: not among the 2 videos"),
    "limit": (("--limit", 0), "--limit: 0 is too small"),
    "no model": (("--version", "/nowhere/model"), "/nowhere/model: no such folder"),
    "dead flag": (("--vis_save_path", "x"), "unrecognized arguments: --vis_save_path"),
}


@pytest.mark.parametrize("name", WRONG_FLAGS)
def test_flags(evaluate, tmp_path, name):
    flags, *words = WRONG_FLAGS[name]
    done = evaluate(*flags)
    clear_error(done, *words)
    assert done.status == 2 and not (tmp_path / "out").exists()


def test_an_output_folder_that_is_none(evaluate, tmp_path):
    (tmp_path / "file").write_text("x")
    clear_error(evaluate("--output_dir", tmp_path / "file"), str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "x"


def test_damaged_models(evaluate, base, tmp_path):
    def damaged(name: str, file: str, change) -> Path:
        folder = tmp_path / name
        shutil.copytree(base, folder)
        (folder / file).write_text(change((folder / file).read_text()))
        return folder

    model = damaged("no_seg", "tokenizer.json", lambda text: text.replace("[SEG]", "[XYZ]"))
    clear_error(evaluate(model=model), "no_seg: the tokenizer has no token '[SEG]'")
    model = damaged("other_id", "config.json", lambda text: json.dumps({**json.loads(text), "seg_token_id": 11}))
    clear_error(evaluate(model=model), "[SEG] has id", "but 11 in the model's config.json", "saved with the weights")
    model = damaged("torn", "config.json", lambda text: text[:40])
    clear_error(evaluate(model=model), "config.json: not valid JSON")
    shutil.copytree(base, tmp_path / "truncated")
    truncate(tmp_path / "truncated" / "model.safetensors")
    clear_error(evaluate(model=tmp_path / "truncated"), "model.safetensors: cannot be read: truncated or damaged")
    (tmp_path / "checkpoint" / "global_step1").mkdir(parents=True)
    (tmp_path / "checkpoint" / "latest").write_text("global_step1")
    (tmp_path / "checkpoint" / "config.json").write_text((base / "config.json").read_text())
    clear_error(evaluate(model=tmp_path / "checkpoint"), "a DeepSpeed checkpoint", "merge_lora_weights")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_keeps_the_records_and_room_lets_the_run_go_on(evaluate, tmp_path):
    assert evaluate("--video", ALPHA, "--predict_only").status == 0
    before = records(tmp_path / "out")
    assert len(before) == 2
    clear_error(evaluate(limit=300), "File too large")
    assert records(tmp_path / "out") == before
    done = evaluate()
    assert done.status == 0 and "predicted 2 questions, kept 2 recorded earlier" in done.out, done.err
    assert {name: record for name, record in records(tmp_path / "out").items() if name in before} == before


def test_a_torn_run_file_stops_the_run_before_it_changes_anything(evaluate, tmp_path):
    assert evaluate("--predict_only").status == 0
    before = records(tmp_path / "out")
    (tmp_path / "out" / "run.json").write_text("{")
    clear_error(evaluate(), "run.json: not valid JSON")
    assert records(tmp_path / "out") == before and (tmp_path / "out" / "run.json").read_text() == "{"
