"""How well are shifted masks found in a corpus? Takes a healthy one, shifts its masks in memory, and counts.

python -m benchmarks.drift_trial groundmore ./dataset/GroundMoRe --limit 24 --wobble 0 1 2
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from datasets.doctor import (
    NAMES,
    ClipTask,
    Drift,
    DriftProbe,
    Findings,
    Options,
    look_at_frame,
    look_at_mask,
    mask_source,
    open_examination,
)
from utils.errors import MoraError
from utils.paths import user_path

TRIALS: dict[str, tuple[tuple[int, ...], bool, int]] = {
    "in place": ((0,), False, 1),
    "1 frame off": ((1, -1), False, 1),
    "2 off": ((2, -2), False, 1),
    "3 off": ((3, -3), False, 1),
    "0 to 3 off": ((3, -3), True, 1),
    "2 off, every third mask": ((2, -2), False, 3),
}
"""Column of the table -> offsets that are tried, whether they grow from 0 over the clip, every how many frames a mask
is kept."""


def wobble(masks: Sequence[np.ndarray | None], pixels: int, rng: np.random.Generator) -> list[np.ndarray | None]:
    """Masks as a hasty annotator draws them: each moved, and grown or shrunk, by up to that many pixels.

    Args:
        masks: ids [H, W], or None.
        pixels: 0: unchanged.
        rng: drawn from three times for each mask.
    """
    wobbled: list[np.ndarray | None] = []
    for mask in masks:
        if mask is None or pixels == 0:
            wobbled.append(mask)
            continue
        down, across, grown = rng.integers(-pixels, pixels + 1, 3).tolist()
        kernel = np.ones((2 * abs(grown) + 1,) * 2, dtype=np.uint8)
        change = cv2.dilate if grown > 0 else cv2.erode
        wobbled.append(change(np.roll(mask, (down, across), (0, 1)), kernel))
    return wobbled


def shifted_verdict(
    frames: Sequence[np.ndarray | None], masks: Sequence[np.ndarray | None], offset: int, grows: bool, every: int
) -> Drift:
    """The verdict on a clip in which frame t is filed with the mask of frame t + offset.

    Args:
        frames: uint8 RGB [H, W, 3] each, or None.
        masks: ids [H, W] each, or None.
        offset: frames; its opposite is the shift to be found.
        grows: the offset grows from 0 at the first frame to its full value at the last one.
        every: only every n-th frame has a mask.
    """
    probe, last = DriftProbe(), len(frames) - 1
    for index, frame in enumerate(frames):
        source = index + (round(offset * index / last) if grows and last else offset)
        there = 0 <= source <= last and index % every == 0
        probe.push(frame, masks[source] if there else None)
    return probe.verdict()


def try_clip(task: ClipTask, pixels: Sequence[int]) -> Counter[tuple[int, str, str]]:
    """Counts of (wobble, trial, outcome) of one clip; outcomes: found, wrong (another shift), missed."""
    numbers = sorted(task.tubes) if task.tubes is not None else []
    frames = [look_at_frame(path, decode=True).pixels for path in task.frames]
    sources = [mask_source(task, numbers, index) for index in range(len(frames))]
    masks = [None if source is None else look_at_mask(source, True) for source in sources]
    plain = [None if look is None or look.mistakes else look.pixels for look in masks]
    outcomes: Counter[tuple[int, str, str]] = Counter()
    for amount in pixels:
        drawn = wobble(plain, amount, np.random.default_rng(amount))
        for name, (offsets, grows, every) in TRIALS.items():
            for offset in offsets:
                drift = shifted_verdict(frames, drawn, offset, grows, every)
                right = drift.shift * -offset > 0 if grows else drift.shift == -offset
                outcome = "missed" if drift.status != "suspect" else "found" if right else "wrong"
                outcomes[amount, name, outcome] += 1
    return outcomes


def table(outcomes: Counter[tuple[int, str, str]], pixels: Sequence[int]) -> str:
    """Markdown: clips found of those tried; in the column "in place", false alarms."""
    lines = [f"| masks | {' | '.join(TRIALS)} |", f"|{'---|' * (len(TRIALS) + 1)}"]
    for amount in pixels:
        cells = []
        for name in TRIALS:
            found, wrong, missed = (outcomes[amount, name, outcome] for outcome in ("found", "wrong", "missed"))
            cells.append(f"{found}/{found + wrong + missed}{f' ({wrong} with another shift)' if wrong else ''}")
            if name == "in place":
                cells[-1] = f"{wrong + found} false alarms in {found + wrong + missed}"
        lines.append(f"| {f'off by up to {amount} px' if amount else 'exact'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.drift_trial",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("corpus", choices=NAMES, metavar="CORPUS", help="which corpus")
    parser.add_argument("folder", type=user_path, metavar="DIR", help="the corpus's folder, or the one that holds it")
    parser.add_argument("--limit", type=int, metavar="N", help="clips of each split (default: all)")
    parser.add_argument("--wobble", type=int, nargs="+", default=[0, 1, 2], metavar="PX", help="pixels by which each "
                        "mask is moved, and grown or shrunk, at most (default 0 1 2)")  # fmt: skip
    arguments = parser.parse_args(argv)
    outcomes: Counter[tuple[int, str, str]] = Counter()
    try:
        options = Options(limit=arguments.limit)
        examination = open_examination(arguments.corpus, Path(arguments.folder), options, Findings())
        tasks = (task for split in examination.splits for task in examination.clips(split))
        for task in tqdm(tasks, unit="clip"):
            outcomes += try_clip(task, arguments.wobble)
    except MoraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(outcomes, arguments.wobble))
    return 0


if __name__ == "__main__":
    sys.exit(main())
