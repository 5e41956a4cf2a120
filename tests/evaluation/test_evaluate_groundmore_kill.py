"""evaluate_groundmore.py over a real, very small MoRA: killed anywhere and divided among any number of processes, it
ends with the bytes of an uninterrupted single process."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from datasets.tokenization import load_tokenizer
from model import presets
from tests.cli_server import programs  # noqa: F401 - a fixture
from tests.evaluation.conftest import write_corpus

pytestmark = pytest.mark.slow

RESULTS = ("summary.json", "scores.json", "result.txt", "report.html", "run.json")

KILL_BEFORE_WRITE = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored by what it runs in the background
rename, count = os.replace, [0]
def replace(source, target):
    meant = str(target).endswith({ending!r})
    count[0] += meant
    if meant and count[0] == {number}:
        os.kill(os.getpid(), signal.{signal})
        import time; time.sleep({wait})
    rename(source, target)
os.replace = replace
"""
"""Ends the process when its n-th file of a kind is written but has not got its name yet."""

SCORE_IN_PROCESSES = """
import evaluation.run
evaluation.run.POOL_PIXELS = 0
"""


def kill(number: int, ending: str, name: str = "SIGKILL", wait: int = 0) -> str:
    return KILL_BEFORE_WRITE.format(number=number, ending=ending, signal=name, wait=wait)


@pytest.fixture(scope="module")
def data(project_root, tmp_path_factory) -> Path:
    """model/ and a corpus of five clips with ten questions."""
    root = tmp_path_factory.mktemp("data")
    meta, videos = write_corpus(root)
    annotation = json.loads(meta.read_text())
    for number, source in enumerate(("alpha_0000_0004", "beta_0110_0114", "alpha_0000_0004")):
        name = f"copy{number}_{source[-9:]}"
        shutil.copytree(videos / source, videos / name)
        annotation["videos"][name] = annotation["videos"][source]
    meta.write_text(json.dumps(annotation))
    tokenizer = load_tokenizer(project_root / "assets" / "tiny_tokenizer")
    ids = {"seg_token_id": tokenizer.id_of("[SEG]"), "loc_token_id": tokenizer.id_of("[LOC]")}
    fields = {"clip_layers": 1, "llm_layers": 1, "sam_layers": 1, "clip_hidden": 32, "llm_hidden": 32, "sam_hidden": 32}
    presets.build(presets.tiny(vocab_size=len(tokenizer), **ids, **fields)).save_pretrained(root / "model")
    tokenizer.save(root / "model")
    return root


@pytest.fixture(scope="module")
def evaluate(programs, data):  # noqa: F811
    """Runs the program into a folder."""

    def run(folder: Path, *extra: object, **options):
        return programs(
            "evaluate_groundmore.py", "--version", data / "model", "--meta_file", data / "groundmore_test.json",
            "--video_root", data / "groundmore_videos", "--output_dir", folder, "--num_frames", 4,
            "--max_new_tokens", 2, "--force_seg_token", "--force_loc_token", "--use_loc_refine", "--device", "cpu",
            "--precision", "fp32", "--workers", 1, "--decode_workers", 2, "--pictures", 2, *extra, **options,
        )  # fmt: skip

    return run


def content(folder: Path) -> dict[str, bytes]:
    """Every file but those that a kill left without their name, and scores kept per video, which also tell the source
    of the code that made them."""
    files = (path for path in folder.rglob("[!.]*") if path.is_file() and path.parent.name != "scores")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def uninterrupted(evaluate, tmp_path_factory) -> dict[str, bytes]:
    """The files of one process that was left alone."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = evaluate(folder)
    assert done.status == 0, done.err
    files = content(folder)
    assert set(RESULTS) < set(files) and sum(name.startswith("records/") for name in files) == 10
    assert len(list(folder.glob("scores/*.json"))) == 5
    return files


@pytest.mark.parametrize(
    ("number", "ending", "shards", "kept"),
    [
        (1, "run.json", 3, 0),
        (1, "/1.json", 2, 1),
        (9, ".json", 1, 7),
        (2, "0004.json", 2, 10),
        (1, "summary.json", 3, 10),
    ],
)
def test_a_killed_run_ends_with_the_bytes_of_an_uninterrupted_one(
    evaluate, uninterrupted, tmp_path, number, ending, shards, kept
):
    before = kill(number, ending) + (SCORE_IN_PROCESSES if kept in (1, 7) else "")
    done = evaluate(tmp_path, before=before)
    assert done.status == -9, done.err
    left = content(tmp_path)
    assert all(data == uninterrupted[name] for name, data in left.items())
    assert sum(name.startswith("records/") for name in left) == kept
    done = evaluate(tmp_path, processes=shards)
    assert done.status == 0, done.err
    assert content(tmp_path) == uninterrupted


def test_shards_one_after_the_other(evaluate, uninterrupted, tmp_path):
    said = []
    for index in (2, 0, 1):
        done = evaluate(tmp_path, "--num_shards", 3, "--shard_id", index)
        assert done.status == 0, done.err
        said.append(done.out)
        assert (tmp_path / "summary.json").exists() == (index == 1)
    assert "shard 2 of 3 (--num_shards, --shard_id): 2 questions about 1 videos, 0 recorded already" in said[0]
    assert "shard 2 of 3 (--num_shards, --shard_id): done. 8 questions of other shards are missing" in said[0]
    assert content(tmp_path) == uninterrupted
    # More shards than videos, and nothing left to do: nothing changes.
    done = evaluate(tmp_path, "--num_shards", 9, "--shard_id", 8)
    assert done.status == 0 and "no video is left" in done.out
    assert content(tmp_path) == uninterrupted


def test_a_killed_shard_and_a_restart_with_another_number(evaluate, uninterrupted, tmp_path):
    done = evaluate(tmp_path, processes=3, before=kill(1, "/0.json"))
    assert done.status == -9
    done = evaluate(tmp_path, processes=2)
    assert done.status == 0, done.err
    assert content(tmp_path) == uninterrupted


def test_a_slurm_array(evaluate, uninterrupted, tmp_path):
    for task in (7, 8):
        variables = {"ID": task, "COUNT": 2, "MIN": 7, "STEP": 1}
        names = {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in variables.items()}
        done = evaluate(tmp_path, before=f"import os; os.environ.update({names})")
        assert done.status == 0 and "(Slurm array)" in done.out, done.err
    assert content(tmp_path) == uninterrupted


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_ending_a_run_is_prompt_and_leaves_it_whole(evaluate, uninterrupted, tmp_path, name, status):
    start = time.monotonic()
    done = evaluate(tmp_path, before=SCORE_IN_PROCESSES + kill(2, "/0.json", name, wait=1))
    assert done.status == status and "the same command goes on" in done.err and "Traceback" not in done.err, done.err
    assert time.monotonic() - start < 60  # and no hang
    assert all(data == uninterrupted[name] for name, data in content(tmp_path).items())
    assert not [path for path in tmp_path.rglob(".*")]
    done = evaluate(tmp_path)
    assert done.status == 0 and content(tmp_path) == uninterrupted


BREAK = """
from evaluation.engine import predictor
answer = predictor.MoraPredictor.answer
def failing(self, context, questions, frames_per_pass=None):
    if any(query.query_id == "b" for query in questions):
        raise RuntimeError("a fault")
    return answer(self, context, questions, frames_per_pass)
predictor.MoraPredictor.answer = failing
"""


def test_a_failed_question_is_tried_again_by_whoever_has_it(evaluate, uninterrupted, tmp_path):
    by_hand = ("--num_shards", 2, "--shard_id")
    first, second = evaluate(tmp_path, *by_hand, 1, before=BREAK), evaluate(tmp_path, *by_hand, 0, before=BREAK)
    assert first.status == int("a fault" in first.err) and "questions of other shards are missing" in first.out
    assert second.status == 1 and "FAILED: 2 questions" in second.out
    assert (first.err + second.err).count("question b failed: RuntimeError: a fault") == 2
    assert json.loads((tmp_path / "summary.json").read_text())["counts"]["questions_failed"] == 2
    evaluate(tmp_path, processes=2)
    assert content(tmp_path) == uninterrupted


def test_a_launcher_hears_of_failures_from_the_last_process_only(evaluate, tmp_path):
    """It would end the others at the first that fails."""
    launched = "import os; os.environ.update(RANK='{0}', LOCAL_RANK='{0}', WORLD_SIZE='2')\n" + BREAK
    first, second = (evaluate(tmp_path, before=launched.format(rank)) for rank in (0, 1))
    assert "a fault" in first.err + second.err
    assert (first.status, second.status) == (0, 1), first.err + second.err
    assert evaluate(tmp_path, "--predict_only", before=BREAK).status == 1
