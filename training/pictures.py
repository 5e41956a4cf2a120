"""What the model sees and draws while it learns, as one picture per sample for TensorBoard."""

from __future__ import annotations

from typing import Any

import numpy as np

from datasets.tokenization import MoraTokenizer
from utils.batch import MoraBatch, PixelRule, VideoTensors
from utils.drawing import contact_sheet, draw_overlay, fit_mask

MAX_QUESTIONS = 3


def frames_of(video: VideoTensors, rule: PixelRule) -> np.ndarray:
    """The frames inside the segmenter's square, which ``rule`` made, as uint8 [T, h, w, 3]."""
    height, width = video.resized_size
    pixels = video.sam_pixels[:, :, :height, :width].float().cpu().permute(0, 2, 3, 1).numpy()
    values = np.clip(pixels * np.array(rule.std) + np.array(rule.mean), 0, 255).round()
    return np.ascontiguousarray(values, dtype=np.uint8)


class SamplePicture:
    """Draws the first video of a batch: a row per question, predictions filled and truth outlined.

    Args:
        tokenizer: to write the conversation above each row.
        rule: how frames became the segmenter's.
    """

    def __init__(self, tokenizer: MoraTokenizer, rule: PixelRule):
        self.tokenizer, self.rule = tokenizer, rule

    def __call__(self, batch: MoraBatch, output: dict[str, Any]) -> np.ndarray:
        """uint8 [H, W, 3].

        Args:
            batch: at least one video.
            output: of the model, with ``predictions``.
        """
        video, predictions = batch.videos[0], output["predictions"][0]
        frames = frames_of(video, self.rule)
        size = frames.shape[1:3]
        rows, captions, notes, marks = [], [], [], []
        for question, predicted in list(zip(video.questions, predictions))[:MAX_QUESTIONS]:
            supervised = question.mask_frames.tolist()
            logits = predicted["mask_logits"].float().cpu().numpy()  # [n_seg, m, H, W]
            truth = question.masks.cpu().numpy() > 0
            cells = [frame.copy() for frame in frames]
            for place, frame in enumerate(supervised):
                cells[frame] = draw_overlay(
                    frames[frame],
                    [fit_mask(tube[place] > 0, size) for tube in logits],
                    truth=[fit_mask(tube[place], size) for tube in truth],
                )
            rows.append(cells)
            captions.append(self.tokenizer.decode(question.input_ids.tolist(), skip_special_tokens=True)[-160:])
            times = predicted["loc_logits"]
            if times is None:
                notes.append(["" for _ in cells])
            else:
                notes.append([f"in window {value:.2f}" for value in times.float().sigmoid().tolist()])
            if question.in_window is None:
                marks.append([False] * len(cells))
            else:
                marks.append([value > 0.5 for value in question.in_window.tolist()])
        return contact_sheet(rows, captions, notes, title=video.video_id, marks=marks)
