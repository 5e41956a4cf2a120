"""More bad input at the command line: places that cannot be written, numbers that are none, files of another kind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.cli_server import clear_error, programs  # noqa: F401 - a fixture
from tests.evaluation.conftest import write_corpus as write_clips
from tests.training.conftest import tiny_base, write_corpus  # noqa: F401 - a fixture

pytestmark = pytest.mark.slow

ALPHA = "alpha_0000_0004"


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    """``--dataset_dir`` of one clip."""
    return write_corpus(tmp_path_factory.mktemp("clean"), videos=1)


@pytest.fixture
def train(programs, tiny_base, clean, tmp_path):  # noqa: F811
    def run(*extra: object, limit: int = 0):
        return programs(
            "train_ds.py", "--version", tiny_base, "--dataset_dir", clean, "--dataset", "groundmore", "--precision",
            "fp32", "--epochs", 1, "--steps_per_epoch", 1, "--warmup_steps", 1, "--grad_accumulation_steps", 1,
            "--num_frames", 2, "--workers", 0, "--picture_freq", 0, "--log_base_dir", tmp_path / "runs", "--exp_name",
            "run", *extra, limit=limit,
        )  # fmt: skip

    return run


@pytest.fixture
def evaluate(programs, tiny_base, tmp_path):  # noqa: F811
    meta_file, video_root = write_clips(tmp_path / "clips")

    def run(*extra: object, limit: int = 0):
        return programs(
            "evaluate_groundmore.py", "--version", tiny_base, "--meta_file", meta_file, "--video_root", video_root,
            "--output_dir", tmp_path / "out", "--num_frames", 4, "--force_seg_token", "--force_loc_token",
            "--use_loc_refine", "--max_new_tokens", 2, "--workers", 0, "--pictures", 0, *extra, limit=limit,
        )  # fmt: skip

    return run


WRONG_FLAGS = {
    "silent adapters": (("--lora_alpha", 0), "--lora_alpha: 0 would scale every adapter to nothing", "--lora_r 0"),
    "no tower": (("--vision-tower", "/nowhere"), "--vision-tower: /nowhere: no such folder"),
    "infinite rate": (("--lr", "inf"), "--lr: inf is no finite number"),
    "weight that is no number": (("--ce_loss_weight", "nan"), "--ce_loss_weight: nan is no finite number"),
    "shares that are no numbers": (("--sample_rates", "nan"), "--sample_rates: nan"),
    "seeds": (("--seed", -1), "--seed: -1 is too small"),
    "huge seed": (("--seed", 10**20), "--seed", "is too large"),
    "corpora": (("--dataset", "groundmore||davis", "--epochs", 0), "--dataset: davis is no corpus", "--epochs"),
    "no corpus": (("--dataset", " "), "--dataset", "known: refer_video_seg, mevis, groundmore"),
    "a corpus twice": (("--dataset", "mevis||mevis"), "--dataset", "twice"),
    "flash-attn": (("--attn_implementation", "flash_attention_2"), "--attn_implementation", "not installed"),
}


@pytest.mark.parametrize("name", WRONG_FLAGS)
def test_flags(train, tmp_path, name):
    flags, *words = WRONG_FLAGS[name]
    clear_error(train(*flags), "train_ds.py cannot start", *words)
    assert not (tmp_path / "runs").exists()


def test_places_that_cannot_be_written(train, evaluate, programs, tiny_base, tmp_path):  # noqa: F811
    file = tmp_path / "file"
    file.write_text("x")
    clear_error(train("--log_base_dir", file), "--log_base_dir", f"{file} is a file")
    clear_error(train("--log_base_dir", tmp_path, "--exp_name", "file"), "--exp_name", f"{file} is a file")
    clear_error(train("--log_base_dir", "/proc/nowhere"), "/proc/nowhere")
    clear_error(evaluate("--output_dir", file / "out"), "--output_dir", f"{file} is a file")
    clear_error(evaluate("--result_file", tmp_path), "--result_file", "is a folder; name a file in it")
    done = programs(
        "merge_lora_weights_and_save_hf_model.py", "--version", tiny_base, "--weight", tiny_base, "--save_path",
        file / "model",
    )  # fmt: skip
    clear_error(done, "--save_path", f"{file} is a file")
    assert file.read_text() == "x" and not (tmp_path / "out").exists()


def test_cards_of_another_kind(train, evaluate, tmp_path):
    assert train().status == 0
    card = tmp_path / "runs" / "run" / "ckpt_model" / "run.json"
    whole = card.read_bytes()
    for content, words in (([], "format None"), ({"format": 1}, "has no epoch, step, world_size")):
        card.write_text(json.dumps(content))
        clear_error(train(), "run.json", words)
    card.write_bytes(whole)
    assert train().status == 0
    assert evaluate("--predict_only").status == 0
    (tmp_path / "out" / "run.json").write_text('{"format": "mora-run-1", "fingerprint": "x"}')
    clear_error(evaluate(), "run.json: not a run file")


def test_mistakes_of_a_corpus_are_left_out_if_asked_for(train, tmp_path):
    """Each named, the rest counted and trained on."""
    root = write_corpus(tmp_path / "data", videos=3)
    listing = root / "GroundMoRe" / "trainval_v2.json"
    content = json.loads(listing.read_text())
    (good, first, second) = content["videos"]
    content["videos"][first]["questions"]["0"]["q_type"] = "Magical"
    listing.write_text(json.dumps(content))
    shutil.rmtree(root / "GroundMoRe" / "groundmore_videos" / second)
    flags = ("--dataset_dir", root, "--max_minutes", 1)
    clear_error(train(*flags), f"video {first}, question 0: unknown q_type 'Magical'", f"video {second}: ")
    done = train(*flags, "--on_problem", "skip")
    assert done.status == 0, done.err
    assert f"left out: video {first}, question 0: unknown q_type 'Magical'" in done.err
    assert f"left out: video {second}: " in done.err and "; 1 records are left" in done.err
    assert "groundmore: 1 videos, 1 questions, 100% of the samples" in done.out and good not in done.err


def test_a_base_that_lacks_a_part(train, tiny_base, tmp_path):  # noqa: F811
    """--allow_missing: fresh weights, and the log names them; without it the load is refused and says how."""
    shutil.copytree(tiny_base, tmp_path / "base")
    state = load_file(tmp_path / "base" / "model.safetensors")
    del state["text_hidden_fcs.0.2.bias"]
    save_file(state, tmp_path / "base" / "model.safetensors")
    clear_error(train("--version", tmp_path / "base"), "text_hidden_fcs.0.2.bias: missing", "--allow_missing")
    tower = tmp_path / "tower"
    tower.mkdir()
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tower / "config.json").write_text(json.dumps(config["vision_config"]))
    prefix = "vision_tower."
    part = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    save_file(part, tower / "model.safetensors")
    done = train("--version", tmp_path / "base", "--allow_missing", "text_hidden_fcs.*", "--vision-tower", tower)
    assert done.status == 0, done.err
    assert "newly initialised: text_hidden_fcs.0.2" in done.out and f"{tower} NOT USED" in done.out


def test_an_export_from_what_is_no_weights(programs, tiny_base, tmp_path):  # noqa: F811
    (tmp_path / "w.json").write_text('{"weights": "elsewhere"}')
    done = programs(
        "merge_lora_weights_and_save_hf_model.py", "--version", tiny_base, "--weight", tmp_path / "w.json",
        "--save_path", tmp_path / "model",
    )  # fmt: skip
    clear_error(done, "w.json: a JSON file, not weights", ".safetensors")
    assert not (tmp_path / "model").exists()


def test_a_configuration_that_is_no_object(train, tiny_base, tmp_path):  # noqa: F811
    shutil.copytree(tiny_base, tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text("[]")
    clear_error(train("--version", tmp_path / "base"), "config.json: holds no JSON object")


def test_an_older_checkpoint_does_not_overwrite_a_newer_one(train, tmp_path):
    """The command of a killed run, ``--resume`` included, is what a cluster starts again."""
    assert train("--keep_ckpt_every", 1).status == 0
    kept = tmp_path / "runs" / "run" / "ckpt_model_epoch_001"
    assert train("--epochs", 2, "--resume", kept).status == 0
    clear_error(train("--epochs", 3, "--resume", kept), "is at step 1", "is at step 2", "leave --resume out")
    assert json.loads((tmp_path / "runs" / "run" / "ckpt_model" / "run.json").read_text())["step"] == 2


def test_a_full_disk_while_exporting(programs, tiny_base, tmp_path):  # noqa: F811
    flags = ("--version", tiny_base, "--weight", tiny_base, "--save_path", tmp_path / "model")
    assert programs("merge_lora_weights_and_save_hf_model.py", *flags).status == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    done = programs("merge_lora_weights_and_save_hf_model.py", *flags, limit=100_000)
    clear_error(done, str(tmp_path / "model"), "untouched", "Make room")
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith((".tmp", ".old"))] == []


def test_a_full_disk_while_evaluating_names_the_file(evaluate, tmp_path):
    clear_error(evaluate(limit=900), str(tmp_path / "out"), "File too large")


def test_a_clip_with_frames_and_masks_of_two_sizes_fails_alone(evaluate, tmp_path):
    for kind in ("images", "masks"):
        path = sorted((tmp_path / "clips" / "groundmore_videos" / ALPHA / kind).iterdir())[0]
        Image.open(path).resize((40, 40), Image.Resampling.NEAREST).save(path)
    done = evaluate()
    clear_error(done, "FAILED: 2 questions", "one size")
    assert done.status == 1
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {failure["video_id"] for failure in summary["failures"]} == {ALPHA} and len(summary["failures"]) == 2


def test_damaged_records_fail_their_questions_and_name_their_files(evaluate, tmp_path):
    assert evaluate().status == 0
    damages = (
        lambda record: record["masks"][0].update(counts="zz"),
        lambda record: record.update(masks=[{"size": [3, 3], "counts": "9"}] * len(record["masks"])),
        lambda record: record.update(loc_probs=["a"] * len(record["masks"])),
    )
    paths = sorted((tmp_path / "out" / "records").rglob("*.json"))
    for path, damage in zip(paths, damages):
        record = json.loads(path.read_text())
        damage(record)
        path.write_text(json.dumps(record))
    done = evaluate("--score_only")
    named = [str(path.relative_to(tmp_path / "out")) for path in paths[:3]]
    clear_error(done, "FAILED: 3 questions", "delete the file and predict again", *named)
    assert done.status == 1
    done = evaluate()
    assert done.status == 0 and "predicted 3 questions, kept 1 recorded earlier" in done.out, done.err


def test_a_negative_jitter(programs, tmp_path):  # noqa: F811
    done = programs(".datasets.synthetic", "--out", tmp_path / "w", "--num_videos", 1, "--length_jitter", -3)
    clear_error(done, "length_jitter -3: must not be negative")
