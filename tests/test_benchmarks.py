"""The benchmarks measure what they say: encoder calls, arithmetic, agreement of both routes, the extrapolation."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaForCausalLM

from benchmarks import groundmore_eval, stages
from benchmarks.as_published import plain_sam_encoder
from benchmarks.compare_routes import extrapolate
from benchmarks.costs import costs_of, images_of, key_bytes, tokens_per_image
from benchmarks.counted import capped, count
from benchmarks.stages import Stages
from benchmarks.workload import make_config, open_tokenizer, random_model
from datasets.pixels import Preprocessor
from model import presets

FRAMES = 3


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory):
    """Clips are made once."""
    return tmp_path_factory.mktemp("benchmark")


def run(work_dir, *extra: str, device: str = "cpu") -> dict:
    """Two clips with three questions each, two of them answered by the slow side."""
    flags = ("--preset", "tiny", "--device", device, "--videos", "2", "--questions_per_video", "3", "--workers", "0",
             "--published_questions", "2", "--num_frames", str(FRAMES), "--work_dir", str(work_dir))  # fmt: skip
    return groundmore_eval.measure(
        groundmore_eval.complete(groundmore_eval.build_parser().parse_args([*flags, *extra]))
    )


def test_tiny_end_to_end(work_dir, tmp_path, capsys):
    result = run(work_dir, "--ladder")
    engine, published, agreement = result["engine"], result["published"], result["agreement"]
    assert engine["encoded"] == {"sam": 2 * FRAMES, "tower": 2 * FRAMES}  # every frame once, whatever is asked
    assert published["encoded"] == {"sam": 2 * FRAMES, "tower": 2 * FRAMES * published["tokens"]}  # for 2 questions
    assert published["tokens"] > 3 and engine["failed"] == []
    assert (agreement["questions"], agreement["masks"]) == (2, 2 * FRAMES)
    assert agreement["pixels_that_differ"] < 1e-3 and 0.001 < agreement["pixels_inside"] < 0.999
    assert agreement["largest_loc_difference"] < 1e-4
    assert agreement["same_masks_metric_difference"] < 1e-12
    assert {"SAM", "tower", "LLM prefix", "LLM suffix", "decoder", "scoring"} < engine["stages"].keys()
    assert set(published["tflop"]) <= set(published["stages"]) and set(engine["tflop"]) <= set(engine["stages"])
    assert [row["per"] for row in result["ladder"]] == ["frame"] * 3 + ["question"] * 2
    text = groundmore_eval.format_result(json.loads(json.dumps(result)))
    assert "MEASURED (a)" in text and "MEASURED (b)" in text and "EXTRAPOLATED to 382 clips, 2005 questions" in text
    assert f"(a) {2 * FRAMES} for 2 questions, (b) {2 * FRAMES} for 6 questions" in text


@pytest.mark.parametrize(
    "flags",
    [
        ("--answer_mode", "generate", "--max_new_tokens", "3"),
        ("--visual_mode", "video"),
        ("--visual_mode", "pooled", "--loc_mode", "none"),
        ("--loc_mode", "frame", "--precision", "bf16"),
    ],
)
def test_both_routes_say_the_same(work_dir, flags):
    agreement = run(work_dir, "--no-ladder", *flags)["agreement"]
    tolerance = 0.02 if "bf16" in flags else 1e-4
    assert agreement["pixels_that_differ"] <= tolerance and agreement["largest_loc_difference"] <= tolerance
    assert 0 < agreement["pixels_inside"] < 1


@pytest.mark.parametrize("mode", ["forced", "generate"])
def test_qwen_says_what_the_library_says(work_dir, mode):
    """(a) is transformers' own processor and forward: one pass where the answer is forced, one per token where not."""
    pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    flags = ("--preset", "tiny_qwen", "--answer_mode", mode, "--max_new_tokens", "2", "--timestamps")
    result = run(work_dir, "--no-ladder", *flags, "--height", "48", "--width", "96", "--max_pixels", "8192")
    published, agreement = result["published"], result["agreement"]
    assert agreement["pixels_that_differ"] <= 1e-4 and agreement["largest_loc_difference"] <= 1e-4
    assert 0 < agreement["pixels_inside"] < 1 and result["engine"]["failed"] == []
    assert result["engine"]["encoded"] == {"sam": 2 * FRAMES, "tower": 2 * FRAMES}
    assert published["encoded"]["tower"] == 2 * FRAMES * (1 if mode == "forced" else published["tokens"] - 1)
    assert set(published["tflop"]) <= set(published["stages"])


def test_what_of_qwen_is_not_measured(capsys):
    assert groundmore_eval.main(["--preset", "tiny_qwen", "--device", "cpu", "--frames_as", "video"]) == 0
    text = capsys.readouterr().out
    assert "| 64x64 | 64x64 | 16 | 190 |" in text and "MEASURED" not in text
    assert groundmore_eval.main(["--preset", "tiny_qwen", "--visual_mode", "frame"]) == 2
    assert "--visual_mode frame: of Qwen3-VL only 'video'" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tiny_on_a_gpu(work_dir):
    result = run(work_dir, "--ladder", "--precision", "fp32", device="cuda")
    assert result["engine"]["encoded"] == {"sam": 2 * FRAMES, "tower": 2 * FRAMES}
    assert result["engine"]["peak_bytes"] > 0 and result["agreement"]["pixels_that_differ"] < 1e-3


def test_bad_flags(capsys):
    assert groundmore_eval.main(["--videos", "0"]) == 2
    assert groundmore_eval.main(["--questions_per_video", "12"]) == 2
    assert "--videos 0: must be at least 1" in capsys.readouterr().err


def counted(function) -> float:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize("window", [0, 3])
def test_formulas_count_what_runs(window):
    """Against torch's own counter, on networks whose parts all have different sizes."""
    config = presets.tiny(vocab_size=90, sam_hidden=24, sam_heads=2, sam_channels=32, clip_hidden=40, llm_mlp=56,
                          visual_mode="frame", projector_motion=False, frame_time_embedding=False)  # fmt: skip
    config.sam_config.vision_config.window_size = window
    config.sam_config.vision_config.global_attn_indexes = [1]
    model = presets.build(config)
    costs = costs_of(config)
    encoder = plain_sam_encoder(model)  # torch does not count a CPU's fused attention
    assert counted(lambda: encoder(torch.zeros(1, 3, 64, 64))) == costs.sam_frame
    model.vision_tower.set_attn_implementation("eager")
    clip = torch.zeros(1, 3, 64, 64)
    assert counted(lambda: model.backbone.encode([clip])) == costs.tower_image
    model.language_model.set_attn_implementation("eager")
    row = torch.zeros(2, 7, 128)
    heads = 2 * 7 * costs.llm_head
    rotary = 2 * 7 * 32  # a product of positions and frequencies, per call
    found = counted(lambda: model.language_model(inputs_embeds=row, use_cache=False))
    assert found == pytest.approx(costs.llm(2, 7) + heads, abs=2 * rotary)


def test_full_size_arithmetic():
    costs = costs_of(presets.lisa_7b())
    assert costs.sam_frame / 1e12 == pytest.approx(5.961, abs=1e-3)
    assert costs.decoder_prompt / 1e9 == pytest.approx(3.61, abs=0.01)
    assert costs.llm_token == 32 * 2 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert costs.llm_pair == 2**19


def test_random_weights_are_made_in_place():
    config = make_config("tiny", open_tokenizer(None), visual_mode="frame", loc_mode="global", initialization="hf")
    model = random_model(config, torch.device("cpu"), torch.bfloat16, seed=4)
    state = model.state_dict()
    assert not any(value.is_meta for value in state.values())
    assert {value.dtype for value in state.values()} == {torch.bfloat16}
    assert state["language_model.lm_head.weight"].float().std().item() == pytest.approx(0.02, rel=0.05)
    assert state["sam.shared_image_embedding.positional_embedding"].float().std().item() == pytest.approx(1, rel=0.2)
    assert state["language_model.model.norm.weight"].eq(1).all()
    fresh = LlamaForCausalLM(config.text_config).model.rotary_emb.inv_freq
    assert torch.equal(model.language_model.model.rotary_emb.inv_freq, fresh)
    again = random_model(config, torch.device("cpu"), torch.bfloat16, seed=4).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in state.items())


def test_extrapolation():
    """382 clips at 2 s each, of which a quarter is spent on 4 questions, so 2005 / 382 take more; scoring and (a) go
    by questions; 10 of 20 frames were measured."""
    engine = {
        "videos": 2, "questions": 8, "frames": 20, "seconds": {"predict": 4.0, "score": 0.8}, "warm_up_seconds": 5.4,
        "scoring_processes": 0, "tflop": {"SAM": 4.0, "LLM suffix": 1.0, "decoder": 3.0},
        "stages": {"SAM": 3.0, "LLM suffix": 0.5, "decoder": 0.25, "masks": 0.25, "scoring": 9.0, "decode": 7.0},
    }  # fmt: skip
    slow = {"questions": 2, "seconds": 6.0, "tflop": {"SAM": 30.0, "LLM": 10.0}}
    full = extrapolate(engine, slow)
    assert full["engine"]["predict"] == pytest.approx(2 * (382 * 1.5 + 2005 / 4 * 0.5))
    assert full["engine"]["score"] == pytest.approx(2 * 2005 * 0.1)
    assert full["engine"]["once"] == pytest.approx(5.4 - 2.4)
    assert full["published"]["total"] == pytest.approx(2 * 2005 * 3)
    assert full["engine"]["tflop"] == pytest.approx(2 * (382 * 4 / 2 + 2005 * 4 / 8))
    assert full["published"]["tflop"] == pytest.approx(2 * 2005 * 20)
    beside = extrapolate({**engine, "scoring_processes": 2}, slow)
    waiting = 2 * 2005 * (9 / 8) / 2 - full["engine"]["predict"]
    assert beside["engine"]["score"] == pytest.approx(0.8 + waiting) and waiting > 0
    assert full["ratio"] == pytest.approx(full["published"]["total"] / full["engine"]["total"])


def test_stages_take_inner_time_from_the_outer_one(monkeypatch):
    clock = iter([0.0, 1.0, 4.0, 10.0, 20.0, 21.0])
    monkeypatch.setattr(stages.time, "process_time", lambda: next(clock))
    timer = Stages(torch.device("cpu"))
    with timer.timing((np, "sum", "inner")):
        with timer("outer"):
            np.sum([1])
        np.sum([1])
    assert timer.seconds == {"inner": 3.0 + 1.0, "outer": 10.0 - 3.0}


@pytest.mark.parametrize("frames_as", ["images", "video"])
def test_formulas_of_qwen_count_what_runs(frames_as):
    """Against torch's own counter: a tower of odd sizes with two mergers, a decoder with few key heads."""
    sizes = {"vocab_size": 90, "tower_hidden": 48, "llm_heads": (8, 2), "frames_as": frames_as, "max_pixels": 8192}
    text = presets.tiny_qwen(**sizes).text_config.to_dict()
    text |= {"head_dim": 24, "rope_parameters": text["rope_parameters"] | {"mrope_section": [4, 4, 4]}}  # as in the 4B
    config = presets.tiny_qwen(**sizes, text_config=text)
    model = presets.build(config)
    model.language_model.set_attn_implementation("eager")
    frame = (48, 96)
    costs, video = costs_of(config, frame), torch.zeros(3, 3, *frame)
    images = images_of(config, 3)
    found = counted(lambda: model.backbone.encode([video]))
    rotary = 2 * images * 72 * (48 // 4 // 2) * 2  # a product of positions and frequencies
    assert found == pytest.approx(images * costs.tower_image, abs=rotary)
    (visual,) = model.backbone.encode([video])
    assert (images, visual.tokens.shape[1]) == ({"images": 3, "video": 2}[frames_as], images * 18)
    assert tokens_per_image(config, frame) == 18
    found = counted(lambda: model.backbone.read(torch.zeros(2, 7, 128), None, None))
    assert found == pytest.approx(costs.llm(2, 7), abs=2 * 2 * 3 * 7 * 12)
    assert key_bytes(config) == 2 * 2 * 4 * 2 * 24


@pytest.mark.parametrize(
    ("frame", "smallest", "expected"),
    [
        ((720, 1280), False, (777, 80.4, 359.9, 1.39, 442, 85.3, 2.3)),
        ((360, 640), False, (220, 17.9, 73.5, 0.99, 92.5, 18.4, 0.66)),
        ((720, 1280), True, (180, 14.3, 58.6, 0.96, 74.0, 14.8, 0.54)),
    ],
)
def test_arithmetic_of_qwen_at_full_size(frame, smallest, expected):
    """What torch's counter counted on the meta device, rotary positions included: to the digits that were noted."""
    config = presets.qwen3_vl_8b()
    row = count(capped(config) if smallest else config, frame, 20)
    found = (row.image, row.tower, row.read, row.ask, row.alone, row.shared(5.25), row.keys / 1e9)
    assert found == pytest.approx(expected, rel=6e-3)
    assert row.prefix == 20 * (row.image + 2) + 10


def test_a_qwen_preset_is_counted_without_running(capsys):
    assert groundmore_eval.main(["--preset", "qwen3_vl_8b", "--device", "cpu", "--no-ladder"]) == 0
    text = capsys.readouterr().out
    assert "8,767,123,696 weights" in text
    assert "| 1280x720 | 1184x672 | 777 | 15590 | 80.3 | 360 | 1.39 | 442 | 85.3 | 5.2 | 2.3 GB |" in text
    assert "| 1280x720 | 576x320 | 180 | 3650 |" in text and "| 854x480 | 864x480 | 405 |" in text
    flags = ("--height", "480", "--width", "640", "--frames_as", "video", "--timestamps", "--num_frames", "5")
    assert groundmore_eval.main(["--preset", "qwen3_vl_2b", "--device", "cpu", *flags]) == 0
    assert "| 640x480 | 640x480 | 300 | 937 |" in capsys.readouterr().out  # three pairs of 300, 2 marks and a time
    assert groundmore_eval.main(["--preset", "qwen3_vl_4b", "--max_pixels", "1000"]) == 2
    assert "max_pixels" in capsys.readouterr().err


def test_the_page_on_qwen_shows_what_frames_cost(project_root):
    """Its table of tokens, line by line."""
    text = (project_root / "docs" / "qwen3_vl.md").read_text()
    lines = re.findall(r"^\| (\d+)x(\d+) \| (\d+x\d+) \| (.*) \| (\d+) \((\d+x\d+)\) \|$", text, re.MULTILINE)
    assert len(lines) == 4
    for width, height, seen, tokens, least, least_seen in lines:
        found = []
        for frames_as, numbers in (("images", (1, 5, 20)), ("video", (5, 20))):
            config = presets.qwen3_vl_8b(frames_as=frames_as)
            big, small = (Preprocessor(each.pixel_rule).resized_size(int(height), int(width)) for each in
                          (config, capped(config)))  # fmt: skip
            found += [str(tokens_per_image(config, big) * images_of(config, number)) for number in numbers]
            assert (seen, least_seen) == (f"{big[1]}x{big[0]}", f"{small[1]}x{small[0]}")
        assert tokens.split(" | ") == found and int(least) == tokens_per_image(config, small)
