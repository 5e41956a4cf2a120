"""train_ds.py over a real, very small MoRA: killed anywhere it ends with the same bits; two processes follow one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.cli_server import programs  # noqa: F401 - a fixture
from tests.training.conftest import tiny_base, write_corpus  # noqa: F401 - a fixture
from training.checkpoints.weights import read_weights

pytestmark = pytest.mark.slow

KILL_AT_ITEM = """
import os, signal
from datasets.collate import CorpusDataset
read = CorpusDataset.__getitem__
def item(self, index):
    if index >= {number}:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(self, index)
CorpusDataset.__getitem__ = item
"""

KILL_WHILE_SAVING = """
import os, signal
from pathlib import Path
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
write = TorchCheckpointEngine.save
def save(self, state_dict, path):
    write(self, state_dict, path)
    if "global_step{number}" in str(path):
        Path(path).write_bytes(Path(path).read_bytes()[:100])
        os.kill(os.getpid(), signal.SIGKILL)
TorchCheckpointEngine.save = save
"""


@pytest.fixture(scope="module")
def corpora(programs, tmp_path_factory) -> Path:  # noqa: F811
    """GroundMoRe with windows, Refer-YouTube-VOS without: some samples ask for [LOC], some do not."""
    folder = write_corpus(tmp_path_factory.mktemp("corpora"), videos=3)
    made = programs(
        ".datasets.synthetic", "--out", folder, "--seed", 5, "--num_videos", 2, "--num_frames", 24, "--corpora",
        "refytvos", "--workers", 1,
    )  # fmt: skip
    assert made.status == 0, made.err
    return folder


@pytest.fixture(scope="module")
def train(programs, tiny_base, corpora):  # noqa: F811
    """Runs six steps of two samples each, in two epochs."""

    def run(folder: Path, *extra: object, **options):
        return programs(
            "train_ds.py", "--version", tiny_base, "--dataset_dir", corpora, "--dataset", "groundmore||refer_video_seg",
            "--precision", "fp32", "--epochs", 2, "--steps_per_epoch", 3, "--warmup_steps", 2, "--num_frames", 3,
            "--grad_accumulation_steps", 2, "--workers", 0, "--picture_freq", 0, "--keep_ckpt_every", 1, "--lr", 1e-3,
            "--log_base_dir", folder, "--exp_name", "run", *extra, **options,
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def uninterrupted(train, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = train(folder)
    assert done.status == 0, done.err
    return folder


def curve(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 7))
    return [line["loss/total"] for line in lines]


def step_of(folder: Path) -> int:
    return json.loads((folder / "run" / "ckpt_model" / "run.json").read_text())["step"]


@pytest.mark.parametrize(
    ("accident", "flags", "survives"),
    [
        # step 5 reads items 8 and 9: killed inside the second epoch, after the checkpoint of step 4
        (KILL_AT_ITEM.format(number=9), ("--save_every_steps", 2), 4),
        # killed when the checkpoint of step 6, the last, is half written: that of step 3 must still be there
        (KILL_WHILE_SAVING.format(number=6), (), 3),
    ],
    ids=["inside an epoch", "while saving"],
)
def test_a_killed_run_ends_with_the_bits_of_an_uninterrupted_one(
    train, uninterrupted, tmp_path, accident, flags, survives
):
    done = train(tmp_path, *flags, before=accident)
    assert done.status == -9, done.err
    assert step_of(tmp_path) == survives
    done = train(tmp_path, *flags)
    assert done.status == 0, done.err
    assert f"going on after step {survives}" in done.out
    final, expected = (read_weights(folder / "run" / "ckpt_model") for folder in (tmp_path, uninterrupted))
    assert final.keys() == expected.keys() and len(final) > 50
    assert [name for name in final if not torch.equal(final[name], expected[name])] == []
    assert curve(tmp_path) == curve(uninterrupted)
    assert not [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


def test_two_processes_follow_the_curve_of_one(train, tmp_path):
    """Each takes one of the two samples of a step; one may ask for [LOC] and the other not."""
    one, two, killed = tmp_path / "one", tmp_path / "two", tmp_path / "killed"
    flags = ("--lora_dropout", 0)
    assert train(one, *flags).status == 0
    flags = ("--lora_dropout", 0, "--grad_accumulation_steps", 1)
    done = train(two, *flags, processes=2)
    assert done.status == 0, done.err
    assert curve(two) == pytest.approx(curve(one), rel=1e-4)
    done = train(killed, *flags, processes=2, before=KILL_AT_ITEM.format(number=8))
    assert done.status != 0 and step_of(killed) == 3
    done = train(killed, *flags, processes=2)
    assert done.status == 0, done.err
    assert curve(killed) == pytest.approx(curve(two), rel=1e-6)


def test_ctrl_c_ends_a_run_that_a_shell_made_deaf_to_it(train, tmp_path):
    """As in ``train_ds.py ... &`` of a script."""
    deaf = "import os, signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    done = train(tmp_path, before=deaf + KILL_AT_ITEM.format(number=8).replace("SIGKILL", "SIGINT"))
    assert done.status == 130 and "Traceback" not in done.err, done.err
    assert done.err.rstrip().endswith("the same command goes on from the last one")
    assert step_of(tmp_path) == 3


@pytest.mark.parametrize("flags", [("--lr", -1), ("--no_such_flag",), ("--dataset", "groundmoar")])
def test_a_mistake_in_the_flags_is_said_once_by_two_processes(train, tmp_path, flags):
    done = train(tmp_path, *flags, processes=2)
    assert done.status in (1, 2)
    assert done.err.count(str(flags[-1])) == 1, done.err
    assert "Traceback" not in done.err and "PeerError" not in done.err and "RendezvousError" not in done.err
    assert not (tmp_path / "run").exists()
