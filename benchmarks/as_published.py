"""The GroundMoRe evaluation as it was published, as the slow side of a comparison.

For every question every frame is read, resized and sent through SAM and CLIP again; the language model writes its
answer without a cache, reading the whole row for every token, and CLIP again with it; one frame, one row, one mask at a
time, in one process. It shares its weights with the model it is compared with, and none of its shortcuts: SAM is
transformers' eager encoder, CLIP runs all its layers, the decoder reads plain rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from accelerate import init_empty_weights
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers.models.sam.modeling_sam import SamVisionEncoder

from benchmarks.stages import FrameCounter, Stages
from benchmarks.workload import Bench
from datasets.pixels import Preprocessor
from model.mora import MoraModel
from model.segmenters import Embeddings
from utils.batch import IMAGE_TOKEN_INDEX


@dataclass
class PublishedAnswer:
    """What the slow side says about one question.

    Attributes:
        masks: bool [T, H, W].
        logits: float32 [T, h, w], the decoder's, before they are enlarged; for comparing precisions.
        loc_probs: float [T] or None.
        tokens: how many were written per row.
    """

    masks: np.ndarray
    logits: np.ndarray
    loc_probs: np.ndarray | None
    tokens: int


def plain_sam_encoder(model: MoraModel) -> SamVisionEncoder:
    """transformers' eager encoder over the model's own weights; no memory of its own."""
    config = type(model.sam.config.vision_config).from_dict(model.sam.config.vision_config.to_dict())
    config._attn_implementation = "eager"
    with init_empty_weights(include_buffers=False):
        encoder = SamVisionEncoder(config)
    encoder.load_state_dict(model.sam.vision_encoder.state_dict(), assign=True)
    return encoder.eval()


class PublishedEvaluation:
    """Answers questions as the published evaluator does.

    Args:
        bench: model, tokenizer, protocol.
        stages: where time is counted.

    Attributes:
        counter: frames that went through SAM's encoder and the vision tower.
    """

    def __init__(self, bench: Bench, stages: Stages):
        self.model, self.stages, self.eos_id = bench.model, stages, bench.tokenizer.eos_id
        self.mask_threshold, self.forced = bench.protocol.mask_threshold, bench.protocol.answer_mode == "forced"
        model = bench.model
        self.encoder = plain_sam_encoder(model)
        self.sam = Preprocessor(model.sam.pixel_rule)
        self.clip = Preprocessor(model.config.pixel_rule)
        weight = model.get_input_embeddings().weight
        self.device, self.dtype = weight.device, weight.dtype
        self.counter = FrameCounter(sam=(self.encoder.neck, 1), tower=bench.tower)

    def tower_pixels(self, frames: Sequence[np.ndarray]) -> Tensor:
        """What the vision tower is given of a row's frames, one item per frame."""
        return torch.cat([self.clip([frame]).to(self.device, self.dtype) for frame in frames])

    def passes(self, tokens: int) -> list[int]:
        """How many tokens of an answer of so many tokens each pass over the row reads."""
        return list(range(tokens))

    @torch.inference_mode()
    def answer(self, paths: Sequence[Path], prompt: Tensor, forced: Tensor | None, limit: int) -> PublishedAnswer:
        """Answer one question.

        Args:
            paths: the T frames.
            prompt: int64 [P] with one image place.
            forced: int64 [A], the answer to write; None: the most probable tokens, then [SEG] and [LOC] if missing.
            limit: longest answer that is not forced.
        """
        config = self.model.config
        rows = [[path] for path in paths] if config.visual_mode == "frame" else [list(paths)]
        masks, logits, loc_states, frame_states, tokens = [], [], [], [], 0
        for row in rows:
            frames = []
            for path in row:
                with self.stages("decode"):
                    frames.append(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB))
            size = frames[0].shape[:2]
            with self.stages("resize"):
                sam_pixels = [self.sam([frame]).to(self.device, self.dtype) for frame in frames]
                seen = self.tower_pixels(frames)
            with self.stages("SAM"):
                embeddings = [self.encoder(pixels)[0] for pixels in sam_pixels]
            ids, states, visual_states = self._write(prompt, forced, seen, limit)
            tokens += len(ids)
            seg = states[ids.index(config.seg_token_id)]
            if config.loc_mode != "none":
                loc_states.append(states[ids.index(config.loc_token_id)])
                frame_states.append(self.model.backbone.frame_states(visual_states[None], len(row)))
            with self.stages("decoder"):
                for embedding in embeddings:
                    low = self._decode(embedding, seg)
                    full = self._enlarge(low, size)
                    logits.append(low[0].float().cpu().numpy())
                    masks.append((full > self.mask_threshold)[0].cpu().numpy())
        probs = self._times(loc_states, frame_states)
        return PublishedAnswer(np.stack(masks), np.stack(logits), probs, tokens // len(rows))

    def _write(self, prompt: Tensor, forced: Tensor | None, pixels: Tensor, limit: int) -> tuple[list, Tensor, Tensor]:
        """Write an answer token by token without a cache: (its ids, states [A, D] that predict them, visual states)."""
        config = self.model.config
        ids: list[int] = []
        wanted = None if forced is None else forced.tolist()
        states = visual = None
        for step in range(limit if wanted is None else len(wanted)):
            states, visual, logits = self._read(prompt, ids, pixels)
            token = int(logits.argmax()) if wanted is None else wanted[step]
            if wanted is None and token == self.eos_id:
                break
            ids.append(token)
        needed = [config.seg_token_id] + ([config.loc_token_id] if config.loc_mode != "none" else [])
        missing = [token for token in needed if token not in ids]
        if missing:
            ids += missing
            states, visual, _ = self._read(prompt, ids[:-1], pixels)
        return ids, states, visual

    def _read(self, prompt: Tensor, ids: list[int], pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One pass over a whole row: states from the one that predicts the answer's first token on, states at the
        visual tokens, logits behind the last token."""
        place = prompt.tolist().index(IMAGE_TOKEN_INDEX)
        with self.stages("tower"):
            layer = self.model.config.vision_select_layer
            features = [
                self.model.vision_tower(frame[None], output_hidden_states=True).hidden_states[layer][:, 1:]
                for frame in pixels
            ]
            visual = self.model.projector(torch.cat(features))[0]
        with self.stages("LLM"):
            llm = self.model.language_model
            embed = llm.get_input_embeddings()
            text = torch.cat([prompt, torch.tensor(ids, dtype=prompt.dtype)]).to(self.device)
            row = torch.cat([embed(text[:place]), visual.to(self.dtype), embed(text[place + 1 :])])
            hidden = llm.model(inputs_embeds=row[None], use_cache=False).last_hidden_state
            logits = llm.lm_head(hidden)[0]  # of every position, as the published code computes them
        first = len(prompt) - 2 + len(visual)
        return hidden[0, first:], hidden[0, place : place + len(visual)], logits[-1]

    def _decode(self, embedding: Tensor, seg_state: Tensor) -> Tensor:
        """[1, C, h, w] and the state [D] that predicts [SEG] to logits [1, 4h, 4w]."""
        return self.model.sam.decode(Embeddings((embedding,)), self.model.prompt_embeddings(seg_state)[None])

    def _enlarge(self, low: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits to the size of the frame, float32 [1, H, W], by SAM's two steps."""
        side = self.model.sam.image_size
        height, width = self.sam.resized_size(*size)
        square = F.interpolate(low[:, None].float(), (side, side), mode="bilinear", align_corners=False)
        inner = square[..., :height, :width]
        return F.interpolate(inner, size, mode="bilinear", align_corners=False)[:, 0]

    def _times(self, loc_states: list[Tensor], frame_states: list[Tensor]) -> np.ndarray | None:
        """Probability per frame, float [T]; None without a [LOC] head."""
        if not loc_states:
            return None
        states = torch.stack(loc_states)
        if self.model.config.loc_mode == "frame":
            logits = self.model.loc_head(states)
        else:
            logits = self.model.loc_head(states.mean(0, keepdim=True), torch.cat(frame_states))[0]
        return logits.float().sigmoid().cpu().numpy()


def read_id_mask(path: Path) -> np.ndarray:
    """uint8 [H, W]: object ids of a palette PNG, read as the published evaluator reads them."""
    with Image.open(path) as image:
        return np.array(image.convert("P"))
