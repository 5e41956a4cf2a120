"""What a question costs on a backbone that reads all frames in one row: counted from the configuration, nothing runs.

Without a cache every question pays the vision tower and the whole row; with one, the questions of a video share the
tower and the prefix (the frames and what stands before them), and each pays its own tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.costs import costs_of, images_of, key_bytes, tokens_per_image
from benchmarks.workload import FULL_TEST
from datasets.pixels import Preprocessor
from model import presets
from model.config import MoraConfig

PREFIX_TEXT = 10
"""Tokens of a prompt before its last image, besides the images and the two marks around each."""

STAMP = 7
"""Tokens of a time from ten seconds on, such as "<12.3 seconds>"."""

SUFFIX = 60
"""Tokens of a question and its answer."""


@dataclass(frozen=True)
class Counted:
    """Frames of one size.

    Attributes:
        frame: (height, width) on disk, pixels.
        seen: (height, width) as the tower sees it.
        image: visual tokens of one image.
        prefix: tokens of the prefix.
        tower, read, ask: TFLOP of a video's tower, of its prefix, and of one question's own tokens.
        sam, decoder: TFLOP of SAM's encoder on a video's frames, and of the mask decoder for one question.
        keys: bytes of the prefix's keys and values in half precision.
    """

    frame: tuple[int, int]
    seen: tuple[int, int]
    image: int
    prefix: int
    tower: float
    read: float
    ask: float
    sam: float
    decoder: float
    keys: int

    @property
    def alone(self) -> float:
        """TFLOP of a question that shares nothing."""
        return self.tower + self.read + self.ask

    def shared(self, questions: float) -> float:
        """TFLOP of a question where so many share a video's tower and prefix."""
        return (self.tower + self.read) / questions + self.ask


def count(config: MoraConfig, frame: tuple[int, int], frames: int) -> Counted:
    """Count a video of so many frames of (height, width) pixels."""
    seen = Preprocessor(config.pixel_rule).resized_size(*frame)
    costs, images, each = costs_of(config, seen), images_of(config, frames), tokens_per_image(config, seen)
    prefix = images * (each + 2 + (STAMP if config.timestamps else 0)) + PREFIX_TEXT
    return Counted(
        frame=frame,
        seen=seen,
        image=each,
        prefix=prefix,
        tower=images * costs.tower_image / 1e12,
        read=costs.llm(1, prefix) / 1e12,
        ask=costs.llm(1, SUFFIX, prefix) / 1e12,
        sam=frames * costs.sam_frame / 1e12,
        decoder=frames * costs.decoder_prompt / 1e12,
        keys=prefix * key_bytes(config),
    )


def capped(config: MoraConfig) -> MoraConfig:
    """The same network with as few pixels of a frame as its bounds leave."""
    return type(config)(**{**config.to_dict(), "max_pixels": config.min_pixels})


def format_counted(name: str, config: MoraConfig, sizes: Sequence[tuple[int, int]], frames: int) -> str:
    """A page of Markdown.

    Args:
        name: of the network.
        config: its shape.
        sizes: (height, width) of frames on disk, a line of the table each; the first also as small as can be.
        frames: of a clip.
    """
    model, questions = presets.build(config, "meta"), FULL_TEST["questions"] / FULL_TEST["videos"]
    total, language = (sum(each.numel() for each in part.parameters()) for part in (model, model.language_model))
    rows = [count(config, frame, frames) for frame in sizes]
    if config.max_pixels > config.min_pixels:
        rows.append(count(capped(config), sizes[0], frames))
    lines = [
        f"# {name}, {frames} frames as {config.frames_as}{' with their times' if config.timestamps else ''}",
        "",
        f"COUNTED, nothing ran: {language:,} weights of the language model and its tower, {total:,} with SAM, the "
        f"read-out and the [LOC] head. A question and its answer have {SUFFIX} tokens, a video {questions:.2f} "
        "questions (the test's mean). TFLOP, attention in full, without the language head.",
        "",
        "| frame | resized | tokens per image | of the prefix | tower | prefix | suffix | per question without cache | "
        "with | ratio | keys and values |",
        f"|{'---|' * 11}",
    ]
    for row in rows:
        shared = row.shared(questions)
        lines.append(
            f"| {_size(row.frame)} | {_size(row.seen)} | {row.image} | {row.prefix} | {_short(row.tower)} | "
            f"{_short(row.read)} | {_short(row.ask)} | {_short(row.alone)} | {_short(shared)} | "
            f"{row.alone / shared:.1f} | {row.keys / 1e9:.2g} GB |"
        )
    lines += [
        "",
        f"SAM comes on top, the same for every size: {_short(rows[0].sam)} TFLOP for the {frames} frames of a video, "
        f"{_short(rows[0].decoder)} for a question's masks.",
        "",
        f"| full test, {FULL_TEST['videos']} clips and {FULL_TEST['questions']} questions, SAM included | every "
        "question by itself | frames once per clip | ratio |",
        "|---|---|---|---|",
    ]
    for row in rows:
        alone = (row.alone + row.sam + row.decoder) * FULL_TEST["questions"] / 1e3
        once = (row.tower + row.read + row.sam) * FULL_TEST["videos"]
        shared = (once + (row.ask + row.decoder) * FULL_TEST["questions"]) / 1e3
        lines.append(f"| {_size(row.frame)} as {_size(row.seen)} | {_short(alone)} PFLOP | {_short(shared)} PFLOP | "
                     f"{alone / shared:.1f} |")  # fmt: skip
    return "\n".join(lines)


def _size(frame: tuple[int, int]) -> str:
    return f"{frame[1]}x{frame[0]}"


def _short(value: float) -> str:
    """Three digits, such as "442", "85.3", "0.00123"."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
