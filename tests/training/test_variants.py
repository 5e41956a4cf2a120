"""The comparison of variants: what its commands train, what its table says."""

from __future__ import annotations

import argparse
import shutil

import pytest

import evaluate_groundmore
from benchmarks import variants
from datasets.synthetic.__main__ import main as write_corpora
from evaluation.comparison import compare, read_scored_run
from model.config import MoraConfig
from training.export import export
from training.export import parse_arguments as parse_export
from training.run import train
from training.settings import parse_arguments as parse_training
from utils.errors import MoraError

pytestmark = pytest.mark.slow

PROGRAMS = {
    "-m": lambda argv: write_corpora(argv[1:]),
    "train_qwen_ds.py": lambda argv: train(parse_training(argv, backbone="qwen3_vl")),
    "merge_lora_weights_and_save_hf_model.py": lambda argv: export(parse_export(argv)),
    "evaluate_groundmore.py": evaluate_groundmore.main,
}
SIZE = variants.Size(videos=3, referring=1, test=2, steps=1, warmup=1, batch=1)


@pytest.fixture(scope="module")
def done(qwen_base, world, tmp_path_factory):
    """The reference and one variant, run by the commands that the benchmark gives, in this process."""
    out = tmp_path_factory.mktemp("variants")
    flags = ["--out", str(out), "--base", str(qwen_base), "--variants", "at", "--seeds", "3", "--jobs", "1"]
    args = variants.parse_arguments(flags)
    args.size, args.precision = SIZE, "fp32"
    for command in variants.corpora(out, SIZE) + [c for n in args.variants for c in variants.steps_of(n, 3, args)]:
        status = PROGRAMS[command[0]](command[1:])
        assert command[0] != "evaluate_groundmore.py" or status == 0
    return args


def test_runs_differ_in_one_setting(done):
    configs = [MoraConfig.from_pretrained(done.out / "models" / f"{name}_3").to_dict() for name in ("reference", "at")]
    assert {k: v for k, v in configs[0].items() if configs[1][k] != v} == {"readout": "before"}
    flags = [variants.steps_of(name, 3, done)[0] for name in variants.VARIANTS]
    for name, other in zip(variants.VARIANTS, flags):
        away = [(a, b) for a, b in zip(flags[0], other, strict=True) if a != b and not a.startswith("reference")]
        assert len(away) == (name != "reference")


def test_the_table_says_what_a_comparison_says(done):
    rows = variants.compare_all(done)
    assert [row["title"] for row in rows] == ["J&F", "J&F without [LOC]", "temporal IoU"]
    runs = [read_scored_run(done.out / "eval" / f"{name}_3") for name in ("reference", "at")]
    whole = compare(*runs)["table"]["JF"]["Overall"]
    assert {key: rows[0][key] for key in whole} == whole and rows[0]["seeds"] == [whole["mean"]]
    text = variants.format_rows(rows, done)
    assert f"| read out at the token | J&F | {whole['a']:.4f} | {whole['b']:.4f} | {whole['mean']:+.4f} | " in text


def test_seeds_count_together(done):
    """A second seed whose two runs are equal halves the difference, and videos stay the groups that are drawn."""
    for name in ("reference", "at"):
        shutil.copytree(done.out / "eval" / "at_3", done.out / "eval" / f"{name}_4")
    one = variants.compare_all(done)[0]
    both = variants.compare_all(argparse.Namespace(**{**vars(done), "seeds": [3, 4]}))[0]
    assert both["N"] == 2 * one["N"] and both["mean"] == pytest.approx(one["mean"] / 2)
    assert both["seeds"] == [one["mean"], 0.0]
    assert (both["low"], both["high"]) == (pytest.approx(one["low"] / 2), pytest.approx(one["high"] / 2))


def test_a_program_that_fails_is_told_with_its_last_lines(tmp_path):
    with pytest.raises(MoraError, match="ended with 3.*\n.*no room"):
        variants.run(["-c", "import sys; print('no room'); sys.exit(3)"], tmp_path / "log.txt", 1)


def test_bad_flags(tmp_path, capsys):
    assert variants.main(["--out", str(tmp_path), "--base", str(tmp_path / "none")]) == 2
    assert variants.main(["--out", str(tmp_path), "--base", str(tmp_path), "--seeds", "1", "1"]) == 2
    text = capsys.readouterr().err
    assert "none: no such folder" in text and "--seeds different" in text and not list(tmp_path.iterdir())
