"""Qwen3-VL: prompts as written out by hand from its template, pixels as the library's processor makes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.conversation import (
    Shown,
    build_example,
    encode_forced_answer,
    encode_prompt,
    forced_answer,
    groundmore_question,
    referring_question,
    render_prompt,
)
from datasets.pixels import Preprocessor
from datasets.tokenization import load_tokenizer
from utils.batch import IGNORE_INDEX, IMAGE_TOKEN_INDEX, FrameMarks, PixelRule

GOLDEN = Path(__file__).parent / "golden"
HALF = (0.5, 0.5, 0.5)
ASKED = groundmore_question("Who kicks the Ball?")
REFERRED = referring_question("Red  car")
CASES = {
    "images": (ASKED, Shown((0.0, 0.5, 12.0), FrameMarks(1))),
    "images_stamps": (REFERRED, Shown((0.0, 0.8333, 12.3456), FrameMarks(1, True))),
    "video_stamps": (ASKED, Shown((0.0, 0.75, 1.5, 2.5, 12.3456), FrameMarks(2, True))),
    "forced": (ASKED, Shown((0.0, 0.5), FrameMarks(1))),
}


@pytest.fixture(scope="module")
def tokenizer(project_root):
    return load_tokenizer(project_root / "assets" / "tiny_qwen_tokenizer")


@pytest.mark.parametrize("name", CASES)
def test_prompts_byte_for_byte(name, tokenizer):
    question, shown = CASES[name]
    wanted = (GOLDEN / f"qwen3_vl_{name}.txt").read_bytes().decode()
    written = render_prompt(question, "qwen3_vl", shown)
    if name == "forced":
        written += f"{forced_answer(True, 'bare')}{tokenizer.eos_token}"
    assert written == wanted
    ids = encode_prompt(question, "qwen3_vl", tokenizer, shown).tolist()
    assert ids.count(IMAGE_TOKEN_INDEX) == wanted.count("<image>")
    assert tokenizer.decode(ids) == wanted.replace("<image>", "").removesuffix("[SEG], [LOC]<|im_end|>")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("answer", ["[SEG], [LOC]", "It is the red circle [SEG] [LOC].", "Sure, [SEG]."])
def test_what_is_taught_is_what_is_asked(name, answer, tokenizer):
    question, shown = CASES[name]
    ids, labels = build_example(question, answer, "qwen3_vl", tokenizer, shown=shown)
    prompt, forced = encode_forced_answer(question, answer, "qwen3_vl", tokenizer, shown)
    assert prompt.equal(encode_prompt(question, "qwen3_vl", tokenizer, shown))
    assert torch.cat([prompt, forced]).equal(ids)
    assert labels[len(prompt) :].equal(forced) and (labels[: len(prompt)] == IGNORE_INDEX).all()
    assert forced.tolist().count(tokenizer.id_of("[SEG]")) == 1 and forced[-1] == tokenizer.id_of("<|im_end|>")


def test_a_prompt_begins_with_the_template_and_no_other_token(tokenizer):
    assert tokenizer.bos_id is None and tokenizer.bos_token is None
    ids = encode_prompt(*(ASKED, "qwen3_vl", tokenizer)).tolist()
    assert ids[0] == tokenizer.id_of("<|im_start|>") and tokenizer.decode(ids[1:2]) == "user"


@pytest.mark.parametrize(
    ("times", "group", "stamps"),
    [
        ((0.0,), 2, ["0.0"]),
        ((0.0, 1.0, 2.0), 2, ["0.5", "2.0"]),
        ((0.0, 1 / 6, 2 / 6, 9.95), 1, ["0.0", "0.2", "0.3", "9.9"]),
        ((0.0, 100.0), 2, ["50.0"]),
        ((3.0, 3.0, 3.0), 1, ["3.0"] * 3),  # a clip shorter than what is asked for shows its frames again
    ],
)
def test_stamps(times, group, stamps):
    text = render_prompt(ASKED, "qwen3_vl", Shown(times, FrameMarks(group, True)))
    assert [part.split("<")[-1] for part in text.split(" seconds>")[:-1]] == stamps
    plain = render_prompt(ASKED, "qwen3_vl", Shown(times, FrameMarks(group)))
    assert "seconds" not in plain and plain.count("<image>") == text.count("<image>") == len(stamps)


@pytest.mark.parametrize("template", ["llava_llama_2", "llava_v1", "plain"])
def test_one_mark_for_all_frames_elsewhere(template):
    assert render_prompt(ASKED, template, Shown((0.0, 1.0, 2.0))) == render_prompt(ASKED, template)


def rows_of(pixels: torch.Tensor, patch: int) -> torch.Tensor:
    """Patches of float [T, 3, H, W] as Qwen2-VL's processors order them: blocks of 2 x 2 patches; in each patch
    channel, two times the frame, row, column."""
    count, channels, height, width = pixels.shape
    cells = pixels.unfold(2, patch, patch).unfold(3, patch, patch)  # [T, 3, h, w, p, p]
    cells = cells.reshape(count, channels, height // patch // 2, 2, width // patch // 2, 2, patch, patch)
    cells = cells.permute(0, 2, 4, 3, 5, 1, 6, 7)[:, :, :, :, :, :, None].expand(-1, -1, -1, -1, -1, -1, 2, -1, -1)
    return cells.reshape(-1, channels * 2 * patch * patch)


def scene(height: int, width: int, seed: int) -> np.ndarray:
    """A frame with smooth parts, edges and noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    frame = np.stack([rows * 255 / height, columns * 255 / width, 127 + 120 * np.sin(rows / 9 + columns / 5)], axis=-1)
    frame[height // 4 : height // 2, width // 3 : width // 2] = (250, 3, 90)
    frame[height // 2 :, : width // 3] = rng.integers(0, 256, (height - height // 2, width // 3, 3))
    return frame.astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "bounds"),
    [
        ((720, 1280), (200_704, 802_816)),
        ((360, 640), (200_704, 802_816)),
        ((97, 211), (200_704, 802_816)),  # made larger
        ((480, 854), (65_536, 200_704)),
        ((640, 33), (4096, 802_816)),
    ],
)
def test_pixels_bit_for_bit_as_the_librarys(size, bounds):
    try:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    except ImportError:
        pytest.skip("this transformers has no image processor that works without torchvision")
    low, high = bounds
    processor = Qwen2VLImageProcessorPil(
        patch_size=16, merge_size=2, image_mean=list(HALF), image_std=list(HALF),
        size={"shortest_edge": low, "longest_edge": high},
    )  # fmt: skip
    frames = [scene(*size, seed=0), np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)]
    theirs = processor([Image.fromarray(frame) for frame in frames], return_tensors="pt")
    ours = Preprocessor(PixelRule(32, "area", HALF, HALF, low, high))(frames)
    assert [[1, side // 16, other // 16] for side, other in [ours.shape[2:]] * 2] == theirs["image_grid_thw"].tolist()
    assert torch.equal(rows_of(ours, 16), theirs["pixel_values"])
