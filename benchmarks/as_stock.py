"""Qwen3-VL as transformers runs it, as the slow side of a comparison: its own image processor, its own forward, every
frame and the whole row again for every question, one question at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from benchmarks.as_published import PublishedEvaluation
from benchmarks.stages import Stages
from benchmarks.workload import Bench
from utils.batch import IMAGE_TOKEN_INDEX


class StockQwen(PublishedEvaluation):
    """:class:`benchmarks.as_published.PublishedEvaluation` on Qwen3-VL: a forced answer is read in one pass, as with
    teacher forcing; a generated one by a pass per token. Frames are images in one row; for videos the library's
    processor wants torchvision.
    """

    def __init__(self, bench: Bench, stages: Stages):
        super().__init__(bench, stages)
        rule, vision = bench.model.config.pixel_rule, bench.model.config.vision_config
        self.processor = Qwen2VLImageProcessorPil(
            size={"shortest_edge": rule.min_pixels, "longest_edge": rule.max_pixels},
            patch_size=vision.patch_size,
            merge_size=vision.spatial_merge_size,
            temporal_patch_size=vision.temporal_patch_size,
            image_mean=list(rule.mean),
            image_std=list(rule.std),
        )
        self.network = bench.model.language_model
        self.image_id = bench.tokenizer.id_of("<|image_pad|>")
        self.network.config.image_token_id = self.image_id

    def tower_pixels(self, frames: Sequence[np.ndarray]) -> Tensor:
        """Patches [T, n, d] of the frames."""
        seen = self.processor([frame for frame in frames], return_tensors="pt")
        self.grid = seen["image_grid_thw"]
        return seen["pixel_values"].unflatten(0, (len(frames), -1)).to(self.device, self.dtype)

    def passes(self, tokens: int) -> list[int]:
        """How many tokens of the answer each pass reads."""
        return [tokens - 1] if self.forced else super().passes(tokens)

    def _write(self, prompt: Tensor, forced: Tensor | None, pixels: Tensor, limit: int) -> tuple[list, Tensor, Tensor]:
        if forced is None:
            return super()._write(prompt, forced, pixels, limit)
        ids = forced.tolist()
        states, visual, _ = self._read(prompt, ids[:-1], pixels)
        return ids, states, visual

    def _read(self, prompt: Tensor, ids: list[int], pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        each = pixels.shape[1] // self.model.config.vision_config.spatial_merge_size**2
        row = [
            token
            for mark in (*prompt.tolist(), *ids)
            for token in ([self.image_id] * each if mark == IMAGE_TOKEN_INDEX else [mark])
        ]
        text = torch.tensor([row], device=self.device)
        seen = text == self.image_id
        with self.stages.timing((self.network.model.visual, "forward", "tower")), self.stages("LLM"):
            hidden = self.network.model(
                input_ids=text,
                pixel_values=pixels.flatten(0, 1),
                image_grid_thw=self.grid.to(self.device),
                mm_token_type_ids=seen.int(),
                use_cache=False,
            ).last_hidden_state
            logits = self.network.lm_head(hidden)[0]
        return hidden[0, len(row) - len(ids) - 1 :], hidden[seen], logits[-1]
