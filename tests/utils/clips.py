"""Small mp4 files for tests."""

from __future__ import annotations

import cv2


def write_clip(path, frames, fps):
    """Write uint8 RGB [H, W, 3] frames of even sides as MPEG-4 part 2."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), float(fps), (width, height))
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
