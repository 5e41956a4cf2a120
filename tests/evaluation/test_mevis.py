"""MeViS valid_u: J&F, N-acc. and T-acc. against their definitions in NumPy, and the program over its layout."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
import transformers
from PIL import Image

from benchmarks.official_davis import official_clip
from datasets.corpora import corpus_named
from datasets.tokenization import load_tokenizer
from evaluation.__main__ import main
from evaluation.benchmark import OVERALL, find_benchmark
from evaluation.compare import main as compare_runs
from evaluation.engine.jobs import Prediction
from evaluation.engine.opening import attach_tokens
from evaluation.engine.predict import predict_corpus
from evaluation.protocol import make_protocol
from evaluation.records import open_run, read_record, read_run
from evaluation.report.page import main as make_page
from evaluation.scoring.score import score_corpus
from evaluation.scoring.summary import summarise
from model import presets
from model.checkpoints import load_any
from utils.masks import decode_rle, encode_rle

HEIGHT, WIDTH, FRAMES = 36, 48, 6
EXPRESSIONS = {"0": [1], "1": [2], "2": [1, 2], "3": [], "4": []}
MEVIS = find_benchmark("mevis_valid_u")


def tube(number: int) -> np.ndarray:
    """Object 1 moves right and leaves after four frames; object 2 moves down and crosses its way."""
    masks = np.zeros((FRAMES, HEIGHT, WIDTH), dtype=bool)
    for frame in range(FRAMES):
        if number == 1 and frame < 4:
            masks[frame, 8:20, 5 * frame : 5 * frame + 14] = True
        elif number == 2:
            masks[frame, 3 * frame : 3 * frame + 12, 12:25] = True
    return masks


def truth(query_id: str) -> np.ndarray:
    """bool [T, H, W]: the union of the expression's objects."""
    return np.any([tube(number) for number in EXPRESSIONS[query_id]] or [np.zeros_like(tube(1))], axis=0)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The layout as published: two videos with the same objects and expressions."""
    root = tmp_path_factory.mktemp("mevis")
    videos, tubes = {}, {}
    for place, name in enumerate(("aaa", "bbb")):
        folder = root / "valid_u" / "JPEGImages" / name
        folder.mkdir(parents=True)
        for frame in range(FRAMES):
            picture = np.stack([tube(1)[frame] * 200, tube(2)[frame] * 150, np.full((HEIGHT, WIDTH), 20 * frame)], -1)
            Image.fromarray(picture.astype(np.uint8)).save(folder / f"{frame:05d}.jpg")
        annotation = {number: 2 * place + number for number in (1, 2)}
        for number, anno_id in annotation.items():
            tubes[str(anno_id)] = [encode_rle(mask) if mask.any() else None for mask in tube(number)]
        videos[name] = {
            "frames": [f"{frame:05d}" for frame in range(FRAMES)],
            "expressions": {
                key: {"exp": f"thing {key}", "obj_id": objects, "anno_id": [annotation[number] for number in objects]}
                for key, objects in EXPRESSIONS.items()
            },
        }
    (root / "valid_u" / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
    (root / "valid_u" / "mask_dict.json").write_text(json.dumps(tubes))
    return root


class Fixed:
    """Answers with masks bool [T, H, W] by (video id, question id); fails where there are none."""

    def __init__(self, masks):
        self.masks = masks

    def prepare(self, video_id, frames, times):
        return video_id

    def encode(self, prepared, frames_per_pass=None):
        return prepared

    def answer(self, context, questions, frames_per_pass=None):
        masks = [self.masks[context, question.query_id] for question in questions]
        return [Prediction(masks=each, has_seg=np.ones(FRAMES, dtype=bool), answers=["[SEG]"]) for each in masks]


def predictions() -> dict[tuple[str, str], np.ndarray]:
    """Right, shifted, silent, and silent or not where nothing is meant; ("bbb", "2") is missing: it fails."""
    shifted = np.roll(tube(2), 3, axis=2)
    one_pixel = np.zeros((FRAMES, HEIGHT, WIDTH), dtype=bool)
    one_pixel[5, 30, 40] = True
    nothing = np.zeros_like(one_pixel)
    return {
        ("aaa", "0"): tube(1), ("aaa", "1"): shifted, ("aaa", "2"): nothing, ("aaa", "3"): nothing,
        ("aaa", "4"): one_pixel, ("bbb", "0"): tube(2), ("bbb", "1"): one_pixel, ("bbb", "3"): nothing,
        ("bbb", "4"): np.ones_like(one_pixel),
    }  # fmt: skip


def reference(answers) -> dict[str, dict[tuple[str, str], float | None]]:
    """The measures as they are defined, from pixels; an expression without an answer failed."""
    table = {key: {} for key in ("J", "F", "JF", "n_accuracy", "t_accuracy")}
    for key in [(video, query) for video in ("aaa", "bbb") for query in EXPRESSIONS]:
        answer, empty = answers.get(key), not EXPRESSIONS[key[1]]
        j, f = (np.zeros(1), np.zeros(1)) if answer is None else official_clip(truth(key[1]), answer)
        table["J"][key], table["F"][key] = j.mean(), f.mean()
        table["JF"][key] = (j.mean() + f.mean()) / 2
        silent = answer is not None and not answer.any()
        table["n_accuracy"][key] = float(silent) if empty else None
        table["t_accuracy"][key] = None if empty else float(answer is not None and answer.any())
    return table


def assert_is_reference(scores, answers):
    expected = reference(answers)
    for score in scores:
        key = score["video_id"], score["query_id"]
        assert score["rows"]["model"] == {measure: values[key] for measure, values in expected.items()}, key


def mean(values) -> float:
    values = [value for value in values.values() if value is not None]
    return sum(values) / len(values)


def evaluated(root, folder, answers, **fields):
    videos = MEVIS.videos({"video_root": str(root)}, make_protocol("mevis"))
    protocol = make_protocol("mevis", **fields)
    mark = open_run(folder, protocol.prediction_settings())
    predict_corpus(videos, Fixed(answers), folder, protocol, mark)
    scores = score_corpus(videos, folder, protocol, mark, benchmark=MEVIS)
    return scores, summarise(scores, protocol, {}, MEVIS)


def test_every_measure_is_its_definition(root, tmp_path):
    answers = predictions()
    scores, summary = evaluated(root, tmp_path, answers)
    assert [score["status"] for score in scores].count("failed") == 1
    assert_is_reference(scores, answers)
    cells = summary["rows"]["model"]["table"][OVERALL]
    for measure, values in reference(answers).items():
        assert cells[measure]["mean"] == pytest.approx(mean(values), abs=1e-12), measure
    # By hand: of four expressions without a target two are met with silence; of six with one four get some mask.
    assert (cells["n_accuracy"]["mean"], cells["n_accuracy"]["N"]) == (0.5, 4)
    assert (cells["t_accuracy"]["mean"], cells["t_accuracy"]["N"]) == (pytest.approx(4 / 6), 6)
    by_key = {(score["video_id"], score["query_id"]): score["rows"]["model"] for score in scores}
    assert by_key["aaa", "0"]["JF"] == by_key["aaa", "3"]["JF"] == 1.0
    assert by_key["aaa", "4"]["J"] == by_key["aaa", "4"]["F"] == 5 / 6  # one wrong pixel on one of six empty frames
    assert by_key["bbb", "2"] == {"JF": 0.0, "J": 0.0, "F": 0.0, "n_accuracy": None, "t_accuracy": 0.0}


def test_the_baselines_are_what_silence_and_noise_are_worth(root, tmp_path):
    _, summary = evaluated(root, tmp_path, predictions())
    empty, full = (summary["rows"][name]["table"][OVERALL] for name in ("all_empty", "whole_frame"))
    assert (empty["n_accuracy"]["mean"], empty["t_accuracy"]["mean"]) == (1.0, 0.0)
    assert (full["n_accuracy"]["mean"], full["t_accuracy"]["mean"]) == (0.0, 1.0)
    keys = [(video, query) for video in ("aaa", "bbb") for query in EXPRESSIONS]
    nothing = np.zeros((FRAMES, HEIGHT, WIDTH), dtype=bool)
    expected = reference(dict.fromkeys(keys, nothing))
    assert empty["JF"]["mean"] == pytest.approx(mean(expected["JF"]), abs=1e-12)
    assert "perfect_timing" not in summary["rows"] and summary["counts"]["questions_of_no_known_type"] == 0


def test_a_mask_that_changes_in_the_annotation_is_scored_again(root, tmp_path):
    first, _ = evaluated(root, tmp_path, predictions())
    videos = MEVIS.videos({"video_root": str(root)}, make_protocol("mevis"))
    videos[0].read_object_mask.tubes[1][0] = encode_rle(tube(2)[0])
    scores = score_corpus(videos, tmp_path, make_protocol("mevis"), None, benchmark=MEVIS)
    assert scores[0]["rows"]["model"]["J"] < first[0]["rows"]["model"]["J"] == 1.0
    assert scores[5]["rows"] == first[5]["rows"]


def test_a_truth_that_cannot_be_read_is_no_success(root, tmp_path):
    answers = predictions()
    _, whole = evaluated(root, tmp_path / "whole", answers)
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    masks = json.loads((copy / "valid_u" / "mask_dict.json").read_text())
    masks["1"][2]["counts"] = "zz"
    (copy / "valid_u" / "mask_dict.json").write_text(json.dumps(masks))
    scores, damaged = evaluated(copy, tmp_path / "damaged", answers)
    lost = [score for score in scores if str(score["reason"]).startswith("the ground truth cannot be read")]
    assert lost and all(score["rows"]["model"]["t_accuracy"] == 0.0 for score in lost)
    before, after = (summary["rows"]["model"]["table"][OVERALL]["t_accuracy"] for summary in (whole, damaged))
    assert after["N"] == before["N"] and after["mean"] < before["mean"]


@pytest.fixture(scope="module")
def model_folder(project_root, tmp_path_factory):
    tokenizer = load_tokenizer(project_root / "assets" / "tiny_tokenizer")
    fields = {"clip_layers": 1, "llm_layers": 1, "sam_layers": 1, "clip_hidden": 32, "llm_hidden": 32, "sam_hidden": 32}
    model = presets.build(presets.tiny(vocab_size=len(tokenizer), **fields))
    attach_tokens(model, tokenizer)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    tokenizer.save(folder)
    return folder


def test_the_program(root, model_folder, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ["--benchmark", "mevis_valid_u", "--video_root", str(root), "--output_dir", str(out)]
    model = ["--version", str(model_folder), "--force_seg_token", "--max_new_tokens", "4", "--workers", "0"]
    model += ["--precision", "fp32", "--device", "cpu"]
    assert main([*flags, *model]) == 0
    printed = capsys.readouterr().out
    for word in ("protocol mevis", "frame_sampling = every", "prompt = referring", "N-acc.", "T-acc.", "all_empty"):
        assert word in printed
    assert "no known type" not in printed and "Causal" not in printed
    summary = json.loads((out / "summary.json").read_text())
    assert summary["benchmark"] == "mevis_valid_u" and summary["run"]["settings"]["benchmark"] == "mevis_valid_u"
    answers = {}
    for video in ("aaa", "bbb"):
        for query in EXPRESSIONS:
            record = read_record(out, video, query)
            assert record.listed_frames == list(range(FRAMES))
            answers[video, query] = np.stack([decode_rle(rle) for rle in record.masks])
    assert_is_reference(json.loads((out / "scores.json").read_text()), answers)
    page = (out / "report.html").read_bytes()
    assert b"N-acc." in page
    before = {path: path.read_bytes() for path in out.rglob("*.json")}
    assert main([*flags, "--score_only"]) == 0
    assert {path: path.read_bytes() for path in out.rglob("*.json")} == before
    assert make_page(["--output_dir", str(out), "--video_root", str(root)]) == 0
    assert compare_runs([str(out), "--row_a", "all_empty", "--measure", "t_accuracy"]) == 0
    assert "t_accuracy" in capsys.readouterr().out


def test_records_made_before_a_segmenter_could_be_chosen_are_continued(root, model_folder, tmp_path):
    flags = ["--benchmark", "mevis_valid_u", "--video_root", str(root), "--output_dir", str(tmp_path), "--limit", "1"]
    model = ["--version", str(model_folder), "--max_new_tokens", "1", "--workers", "0", "--precision", "fp32"]
    assert main([*flags, *model, "--device", "cpu", "--predict_only"]) == 0
    config = json.loads(load_any(model_folder)[0].config.to_json_string(use_diff=False))
    assert config.pop("readout") == "before"
    assert (config.pop("segmenter"), config.pop("transformers_version")) == ("sam", transformers.__version__)
    before = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
    assert read_run(tmp_path)["settings"]["network"] == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--benchmark", "mevis"], "--benchmark mevis: unknown; choose one of groundmore, mevis_valid_u"),
        (["--benchmark", "mevis_valid_u", "--meta_file", "x.json"], "--meta_file: mevis_valid_u has no such file"),
        (["--benchmark", "mevis_valid_u", "--video_root", "nowhere"], "nowhere: no such folder; download MeViS"),
    ],
)
def test_mistakes_are_named(flags, message, capsys, tmp_path):
    assert main([*flags, "--score_only", "--output_dir", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_records_of_another_benchmark_are_not_scored(root, tmp_path, capsys):
    open_run(tmp_path, {"protocol": make_protocol("mevis").prediction_settings()})
    flags = ["--benchmark", "mevis_valid_u", "--video_root", str(root), "--output_dir", str(tmp_path)]
    assert main([*flags, "--score_only"]) == 2
    assert "were made for groundmore" in capsys.readouterr().err


def test_the_row_opens_the_part_whose_masks_are_published(root):
    assert MEVIS.split in corpus_named(MEVIS.corpus).splits
    videos = MEVIS.videos({"video_root": str(root)}, make_protocol(MEVIS.protocol))
    assert [video.video_id for video in videos] == ["aaa", "bbb"]
