"""Bad input at the command line of train_ds.py, the exporter and the motion world: one screen that names the file, the
key or id and the remedy, a non-zero status, and nothing lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.cli_server import clear_error, programs  # noqa: F401 - a fixture
from tests.training.conftest import FRAMES, tiny_base, write_corpus  # noqa: F401 - a fixture

pytestmark = pytest.mark.slow

VIDEO = "clip00_0000_0002"


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    """A corpus of one clip without mistakes; tests change copies."""
    return write_corpus(tmp_path_factory.mktemp("clean"), videos=1)


@pytest.fixture
def corpus(clean, tmp_path) -> Path:
    """A copy of the clean corpus."""
    shutil.copytree(clean, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def train(programs, tiny_base, tmp_path):  # noqa: F811
    """Runs train_ds.py for one step, by default over the copied corpus."""

    def run(*extra: object, base: Path = tiny_base, before: str = "", limit: int = 0):
        return programs(
            "train_ds.py", "--version", base, "--dataset_dir", tmp_path / "data", "--dataset", "groundmore",
            "--precision", "fp32", "--epochs", 1, "--steps_per_epoch", 1, "--warmup_steps", 1,
            "--grad_accumulation_steps", 1, "--num_frames", FRAMES, "--workers", 0, "--picture_freq", 0,
            "--log_base_dir", tmp_path / "runs", "--exp_name", "run", *extra, before=before, limit=limit,
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def trained(programs, tiny_base, clean, tmp_path_factory) -> Path:  # noqa: F811
    """``--log_base_dir`` of a run with a checkpoint."""
    folder = tmp_path_factory.mktemp("runs")
    done = programs(
        "train_ds.py", "--version", tiny_base, "--dataset_dir", clean, "--dataset", "groundmore", "--precision", "fp32",
        "--epochs", 1, "--steps_per_epoch", 1, "--warmup_steps", 1, "--grad_accumulation_steps", 1, "--num_frames", 2,
        "--workers", 0, "--picture_freq", 0, "--log_base_dir", folder, "--exp_name", "run",
    )  # fmt: skip
    assert done.status == 0, done.err
    return folder


def folder_of(corpus: Path, kind: str) -> Path:
    return corpus / "GroundMoRe" / "groundmore_videos" / VIDEO / kind


def edit(corpus: Path, change) -> None:
    """Change the JSON: ``change(videos, first question)``."""
    path = corpus / "GroundMoRe" / "trainval_v2.json"
    content = json.loads(path.read_text())
    change(content["videos"], content["videos"][VIDEO]["questions"]["0"])
    path.write_text(json.dumps(content))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def resize(path: Path) -> None:
    Image.open(path).resize((40, 40), Image.Resampling.NEAREST).save(path)


def recolour(path: Path) -> None:
    Image.open(path).convert("RGB").save(path)


DAMAGED_FILES = {
    "truncated frame": ("images/frame_000004.jpg", truncate, "cannot read this frame", "get the file again"),
    "empty frame": ("images/frame_000004.jpg", lambda path: path.write_bytes(b""), "file is empty", "get the file"),
    "frame of another size": ("images/frame_000004.jpg", resize, "40 x 40", "64 x 64", "one size"),
    "mask of another size": ("masks/frame_000008.png", resize, "40 x 40", "64 x 64", "must agree"),
    "mask in colours": ("masks/frame_000008.png", recolour, "mode RGB", "palette PNG"),
    "truncated mask": ("masks/frame_000008.png", truncate, "cannot read this mask", "get it again"),
}


@pytest.mark.parametrize("name", DAMAGED_FILES)
def test_damaged_files(corpus, train, name):
    file, damage, *words = DAMAGED_FILES[name]
    damage(corpus / "GroundMoRe" / "groundmore_videos" / VIDEO / file)
    clear_error(train(), Path(file).name, *words)


WRONG_TEXTS = {
    "token": ("question", "What is [SEG] here?", "holds [SEG]", "reword it"),
    "token in the answer": ("answer", "the cup </s>", "holds </s>", "reword it"),
    "3000 characters": ("question", "What moves " + "and moves " * 300 + "?", "more than the 512 that fit", "shorten"),
    "absent id": ("obj_id", "77", "object id 77", "none of the clip's masks", "correct the id or the masks"),
}


@pytest.mark.parametrize("name", WRONG_TEXTS)
def test_questions_that_cannot_be_taught(corpus, train, name):
    key, value, *words = WRONG_TEXTS[name]
    edit(corpus, lambda videos, question: question.update({key: value}))
    clear_error(train(), VIDEO, "query 0", *words)


def test_all_mistakes_of_an_annotation_file_at_once(corpus, train):
    def change(videos, question):
        good = dict(question)
        videos[VIDEO]["questions"] |= {
            "type": {**good, "q_type": "Magical"},
            "outside": {**good, "action_start": "30:00", "action_end": "31:00"},
            "empty": {**good, "action_end": good["action_start"]},
            "bare": {"question": "What moves?"},
            "number": 7,
        }
        videos["frameless_0000_0002"] = {"questions": {"0": good}}
        videos["nowhere_0000_0002"] = {"questions": {"0": good}}
        videos["noid"] = {"questions": {"0": good}}

    edit(corpus, change)
    (corpus / "GroundMoRe" / "groundmore_videos" / "frameless_0000_0002" / "images").mkdir(parents=True)
    clear_error(
        train(), "trainval_v2.json", f"video {VIDEO}, question type: unknown q_type 'Magical'",
        f"video {VIDEO}, question outside: the action's window", "lies outside the clip",
        f"video {VIDEO}, question empty: the action's window is empty",
        f"video {VIDEO}, question bare: has no 'obj_id'", f"video {VIDEO}, question bare: has no 'action_start'",
        f"video {VIDEO}, question number: must be an object", "video frameless_0000_0002", "no frame (.jpg, .jpeg,",
        "video nowhere_0000_0002", "cannot list this folder", "video noid: the id must end with",
    )  # fmt: skip


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"videos": []}', '{"videos": {"a": \n [1,2 }', "\x00\xff"])
def test_what_is_no_annotation_file(corpus, train, text):
    (corpus / "GroundMoRe" / "trainval_v2.json").write_text(text, encoding="latin-1")
    clear_error(train(), "trainval_v2.json", "file")


def test_corpora_that_are_not_there(corpus, train, tmp_path):
    clear_error(train("--dataset", "refer_video_seg"), "meta_expressions.json: no such file")
    clear_error(train("--dataset", "groundmoar"), "groundmoar", "known: refer_video_seg, mevis, groundmore")
    clear_error(train("--dataset_dir", tmp_path / "absent"), "--dataset_dir", "docs/data.md")


def test_a_frame_that_is_missing_from_a_listed_clip(programs, train, tmp_path):  # noqa: F811
    made = programs(
        ".datasets.synthetic", "--out", tmp_path / "data", "--seed", 5, "--num_videos", 1, "--num_frames", 24,
        "--corpora", "refytvos,mevis", "--workers", 1,
    )  # fmt: skip
    assert made.status == 0, made.err
    for dataset, folder in (("refer_video_seg", "refytvos"), ("mevis", "MeViSv2")):
        frame = sorted((tmp_path / "data" / folder / "train" / "JPEGImages").rglob("*.jpg"))[3]
        frame.unlink()
        clear_error(train("--dataset", dataset), frame.parent.name, "1 of 24 frame files are missing", frame.stem)


def test_odd_but_possible_input_trains(corpus, train):
    """A clip of one frame, fewer frames than asked for, any script in a question."""

    odd = {"question": "Was bewegt sich — 谁在动? 🟥 \u202eabc?", "action_start": "00:00", "obj_id": "1"}
    edit(corpus, lambda videos, question: question.update(odd))
    for kind in ("images", "masks"):
        for path in sorted(folder_of(corpus, kind).iterdir())[1:]:
            path.unlink()
    done = train("--num_frames", 5)
    assert done.status == 0, done.err


WRONG_FLAGS = {
    "rates": (("--sample_rates", "1,2"), "--sample_rates: 2 rates for 1 corpora"),
    "no number": (("--lr", "fast"), "argument --lr: invalid float value: 'fast'"),
    "nonsense numbers": (("--lr", "nan", "--epochs", -1, "--batch_size", 0, "--num_frames", 0), "--lr", "--epochs"),
    "head of another mode": (("--visual_mode", "video", "--loc_mode", "frame"), "loc_mode: 'frame' needs", "'video'"),
    "contradiction": (("--seg_only", "--loc_mode", "global"), "--seg_only", "give one of the two"),
    "GPU": (("--device", "cuda"), "--device: cuda is asked for, but torch sees no GPU", "--device cpu"),
    "half precision": (("--precision", "fp16"), "--precision: fp16 needs a GPU"),
    "no base": (("--version", "/nowhere/base"), "--version: /nowhere/base: no such folder"),
    "no SAM": (("--vision_pretrained", "/nowhere/sam.pth"), "--vision_pretrained", "/nowhere/sam.pth"),
    "no checkpoint": (("--resume", "/nowhere/ckpt"), "--resume: /nowhere/ckpt"),
    "dead flag": (("--no_eval",), "unrecognized arguments: --no_eval"),
}


@pytest.mark.parametrize("name", WRONG_FLAGS)
def test_flags(clean, train, tmp_path, name):
    (tmp_path / "data").symlink_to(clean)
    flags, *words = WRONG_FLAGS[name]
    clear_error(train(*flags), *words)
    assert not (tmp_path / "runs").exists()


def test_damaged_bases(clean, train, tiny_base, tmp_path):  # noqa: F811
    (tmp_path / "data").symlink_to(clean)

    def damaged(name: str, damage) -> Path:
        folder = tmp_path / name
        shutil.copytree(tiny_base, folder)
        damage(folder)
        return folder

    def forget_seg(folder: Path) -> None:
        path = folder / "tokenizer.json"
        path.write_text(path.read_text().replace("[SEG]", "[XYZ]"))

    base = damaged("no_seg", forget_seg)
    clear_error(train(base=base), "no_seg: the tokenizer has no token '[SEG]'", "take the tokenizer that belongs")
    base = damaged("truncated", lambda folder: truncate(folder / "model.safetensors"))
    clear_error(train(base=base), "model.safetensors: cannot be read: truncated or damaged", "download")
    base = damaged("weightless", lambda folder: (folder / "model.safetensors").unlink())
    clear_error(train(base=base), "weightless: no weights; expected model.safetensors")
    base = damaged("unconfigured", lambda folder: truncate(folder / "config.json"))
    clear_error(train(base=base), "config.json: not valid JSON at line")
    base = damaged("untokenized", lambda folder: (folder / "tokenizer.json").unlink())
    clear_error(train(base=base), "neither tokenizer.model nor tokenizer.json is there")


def state_file(kind: str):
    """Finder of one of DeepSpeed's files in a checkpoint."""
    return lambda folder: next(folder.glob(f"global_step*/*{kind}_states.pt"))


DAMAGED_CHECKPOINTS = {
    "no latest": (lambda f: (f / "latest").unlink(), "without a file 'latest'", "write 'global_step1' into it"),
    "latest names nothing": (lambda f: (f / "latest").write_text("global_step9"), "names 'global_step9'"),
    "truncated weights": (lambda f: truncate(state_file("model")(f)), "model_states.pt", "truncated", "earlier"),
    "truncated optimizer": (lambda f: truncate(state_file("optim")(f)), "optim_states.pt", "truncated", "earlier"),
    "no optimizer": (lambda f: state_file("optim")(f).unlink(), "optim_states"),
    "torn card": (lambda f: truncate(f / "run.json"), "run.json: not valid JSON"),
}


@pytest.mark.parametrize("name", DAMAGED_CHECKPOINTS)
def test_damaged_checkpoints(clean, trained, train, programs, tiny_base, tmp_path, name):  # noqa: F811
    """Neither training nor export goes on from one, and neither changes it."""
    (tmp_path / "data").symlink_to(clean)
    shutil.copytree(trained, tmp_path / "runs")
    checkpoint = tmp_path / "runs" / "run" / "ckpt_model"
    damage, *words = DAMAGED_CHECKPOINTS[name]
    damage(checkpoint)
    before = contents(checkpoint)
    clear_error(train("--epochs", 2), str(checkpoint), *words)
    done = programs(
        "merge_lora_weights_and_save_hf_model.py", "--version", tiny_base, "--weight", checkpoint,
        "--save_path", tmp_path / "merged",
    )  # fmt: skip
    clear_error(done, str(checkpoint), *words)
    assert contents(checkpoint) == before and not (tmp_path / "merged").exists()


def test_a_full_disk_keeps_the_checkpoint_and_room_lets_the_run_go_on(clean, trained, train, tmp_path):
    (tmp_path / "data").symlink_to(clean)
    shutil.copytree(trained, tmp_path / "runs")
    checkpoint = tmp_path / "runs" / "run" / "ckpt_model"
    before = contents(checkpoint)
    done = train("--epochs", 2, "--num_frames", 2, limit=1_000_000)
    clear_error(done, str(checkpoint), "the previous checkpoint is untouched", "Make room", "--auto_resume")
    assert contents(checkpoint) == before
    done = train("--epochs", 2, "--num_frames", 2)
    assert done.status == 0, done.err
    assert json.loads((checkpoint / "run.json").read_text())["step"] == 2
    left = sorted(path.name for path in checkpoint.parent.iterdir())
    assert left == ["ckpt_model", "logs_of_run", "metrics.jsonl", "run.lock", "tensorboard"]


def test_a_run_that_exists_is_not_overwritten(clean, trained, train, tmp_path):
    (tmp_path / "data").symlink_to(clean)
    shutil.copytree(trained, tmp_path / "runs")
    (tmp_path / "runs" / "run" / "run.lock").unlink()  # says who had it last
    before = contents(tmp_path / "runs")
    clear_error(train("--no-auto_resume"), "would overwrite it", "--auto_resume")
    clear_error(train("--epochs", 2, "--lora_r", 4), "another one", "--lora_r 8", "--lora_r 4", "run.json")
    assert {name: data for name, data in contents(tmp_path / "runs").items() if name in before} == before


def test_export(trained, programs, tiny_base, tmp_path):  # noqa: F811
    def merge(*flags: object):
        weight = trained / "run" / "ckpt_model"
        return programs(
            "merge_lora_weights_and_save_hf_model.py", "--version", tiny_base, "--weight", weight, "--save_path",
            tmp_path / "merged", *flags,
        )  # fmt: skip

    assert merge().status == 0
    before = contents(tmp_path / "merged")
    clear_error(merge("--weight", "/nowhere/w", "--version", "/nowhere/b"), "--weight: /nowhere/w", "--version: /now")
    clear_error(merge("--lora_r", 3), "--lora_r: 3, but the weights were trained with 8")
    clear_error(merge("--seg_only"), "--seg_only: the weights were trained with --loc_mode global")
    clear_error(merge("--visual_mode", "frame", "--loc_mode", "frame"), "--visual_mode: frame", "--loc_mode global")
    clear_error(merge("--weight", tmp_path), "no weights; expected model.safetensors")
    (tmp_path / "file").write_text("x")
    clear_error(merge("--save_path", tmp_path / "file"), "--save_path", "is a file; give a folder")
    assert contents(tmp_path / "merged") == before


def test_motion_world(programs, tmp_path):  # noqa: F811
    def make(*flags: object, limit: int = 0):
        return programs(
            ".datasets.synthetic", "--out", tmp_path / "world", "--num_videos", 1, "--num_frames", 24, "--corpora",
            "groundmore", "--workers", 1, *flags, limit=limit,
        )  # fmt: skip

    clear_error(make(limit=800), str(tmp_path / "world"), "cannot write", "run the same command again")
    assert make().status == 0
    before = contents(tmp_path / "world")
    clear_error(make("--seed", 9), "other settings (seed 0 there, 9 now)", "--overwrite")
    clear_error(make("--height", 8), "both sides must be at least 32")
    clear_error(make("--num_frames", 0), "num_frames 0", "at least 4 seconds")
    clear_error(make("--seed", "x"), "invalid int value: 'x'")
    assert contents(tmp_path / "world") == before
    (tmp_path / "file").write_text("x")
    clear_error(make("--out", tmp_path / "file"), "file", "cannot write", "choose another --out")
    (tmp_path / "world" / "synthetic.json").write_text("{")
    clear_error(make(), "synthetic.json: not valid JSON at line 1")
