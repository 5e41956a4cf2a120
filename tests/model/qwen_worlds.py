"""Tiny Qwen3-VL models, videos that fit them, and the library's own forward as their oracle."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from model import presets
from model.mora import MoraModel
from tests.model.conftest import Worlds
from utils.batch import IGNORE_INDEX, IMAGE_TOKEN_INDEX

IMAGE, VIDEO, START, END = 60, 61, 62, 63
"""Ids of the library's own forward: no text of these worlds has the first two."""

QWEN_MODES = [("video", "global"), ("pairs", "global"), ("frame", "global"), ("frame", "frame"), ("video", "none")]
"""(visual_mode, loc_mode); "pairs" is visual_mode "video" with frames_as "video"."""


class QwenWorlds(Worlds):
    """As :class:`tests.model.conftest.Worlds`, with a Qwen3-VL; frames are not square and their size goes by the seed.

    Args:
        mode: of the models and of the conversations, see :data:`QWEN_MODES`.
    """

    def __init__(self, mode: str = "video"):
        self.mode = mode

    def config(self, **overrides):
        """Two levels of features, three layers; patches of 8, so 16 x 16 pixels are a token."""
        mode = overrides.pop("visual_mode", self.mode)
        shape = {"visual_mode": "frame" if mode == "frame" else "video", "frames_as": "images"}
        shape["frames_as"] = "video" if mode == "pairs" else "images"
        sizes = {"vocab_size": 64, "tower_hidden": 32, "llm_hidden": 64, "llm_layers": 3, "llm_heads": (4, 2)}
        fields = {**sizes, **shape, "seg_token_id": self.seg, "loc_token_id": self.loc, "tower_layers": 3}
        return presets.tiny_qwen(**{**fields, "sam_config": super().config().sam_config, **overrides})

    def question(self, generator, frames, *args, **kwargs):
        """One random question whose image mark has become those of all frames, each between two words."""
        question = super().question(generator, frames, *args, **kwargs)
        ids, count = question.input_ids.tolist(), {"frame": 1, "pairs": -(-frames // 2)}.get(self.mode, frames)
        if IMAGE_TOKEN_INDEX in ids:
            at, marks = ids.index(IMAGE_TOKEN_INDEX), torch.tensor([START, IMAGE_TOKEN_INDEX, END] * count)
            for name, more in (("input_ids", marks), ("labels", torch.full_like(marks, IGNORE_INDEX))):
                old = getattr(question, name)
                setattr(question, name, torch.cat([old[:at], more, old[at + 1 :]]))
        return question

    def video(self, seed: int, frames: int, **questions):
        video = super().video(seed, frames, **questions)
        generator = torch.Generator().manual_seed(100 + seed)
        video.clip_pixels = torch.randn(frames, 3, 16 * (1 + seed % 3), 16 * (2 + seed % 2), generator=generator)
        return video


def patch_rows(frames: Tensor, side: int) -> Tensor:
    """Patches of two frames [2, 3, H, W] by the published layout, written out: [h * w, 3 * 2 * side * side]."""
    height, width = frames.shape[2:]
    places = [
        (y, x)
        for top in range(0, height, 2 * side)
        for left in range(0, width, 2 * side)
        for y in (top, top + side)
        for x in (left, left + side)
    ]
    cut = [frames[:, :, y : y + side, x : x + side].transpose(0, 1).flatten() for y, x in places]
    return torch.stack(cut)


@dataclass
class Stock:
    """What the library's own forward is given for one conversation about one video, and what it says.

    Attributes:
        ids: int64 [1, L], with the library's tokens in the place of visual tokens.
        kinds: int64 [1, L], 0 text, 1 image, 2 video.
        patches: float [n, 3 * 2 * p * p].
        grid: int64 [images or 1, 3], in patches.
        kind: "image", "video", or "" without either.
    """

    ids: Tensor
    kinds: Tensor
    patches: Tensor
    grid: Tensor
    kind: str

    def network(self, model: MoraModel):
        """A copy of the network that knows these tokens."""
        network = copy.deepcopy(model.language_model)
        for name, value in (("image", IMAGE), ("video", VIDEO), ("vision_start", START), ("vision_end", END)):
            setattr(network.config, f"{name}_token_id", value)
        return network

    def grids(self) -> dict[str, Tensor]:
        """The argument that tells of sizes."""
        return {f"{self.kind}_grid_thw": self.grid} if self.kind else {}

    def states(self, model: MoraModel) -> Tensor:
        """States after the final norm, [L, D]."""
        pixels = {"image": "pixel_values", "video": "pixel_values_videos"}
        pixels = {pixels[self.kind]: self.patches} if self.kind else {}
        network = self.network(model).model
        return network(input_ids=self.ids, mm_token_type_ids=self.kinds, **pixels, **self.grids()).last_hidden_state[0]


def stock_of(model: MoraModel, ids: Tensor, pixels: Tensor) -> Stock:
    """A conversation with image marks as the library wants it.

    Args:
        model: says how frames are shown.
        ids: int64 [L].
        pixels: float [T, 3, H, W]; in mode "frame" of one frame.
    """
    side, pairs = model.config.vision_config.patch_size, model.config.frames_as == "video"
    if pairs:
        frames = list(pixels) + [pixels[-1]] * (len(pixels) % 2)
        groups = [torch.stack(frames[start : start + 2]) for start in range(0, len(frames), 2)]
    else:
        groups = [torch.stack([frame, frame]) for frame in pixels]
    height, width = pixels.shape[2] // side, pixels.shape[3] // side
    token = VIDEO if pairs else IMAGE
    laid = []
    for word in ids.tolist():
        laid += [token] * (height * width // 4) if word == IMAGE_TOKEN_INDEX else [word]
    laid = torch.tensor([laid])
    grid = [[len(groups), height, width]] if pairs else [[1, height, width]] * len(groups)
    patches = torch.cat([patch_rows(group, side) for group in groups])
    kind = "" if IMAGE_TOKEN_INDEX not in ids else "video" if pairs else "image"
    return Stock(laid, (laid == token).int() * (1 + pairs), patches, torch.tensor(grid), kind)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Compare states of size 1."""
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def mode_of(request: pytest.FixtureRequest) -> str:
    """The visual mode that a test is run with; "video" if it does not say."""
    callspec = getattr(request.node, "callspec", None)
    return callspec.params.get("visual_mode", "video") if callspec else "video"
