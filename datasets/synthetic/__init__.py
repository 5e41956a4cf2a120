"""A procedural world of moving objects: exact masks, exact action windows, and questions only motion can answer."""

from datasets.synthetic.scene import Event, MotionVideo, WorldExpression, WorldObject, WorldQuestion
from datasets.synthetic.settings import COLOURS, SHAPES, WorldSettings, sampled_frame_indices
from datasets.synthetic.world import SPLITS, make_still_video, make_video

__all__ = [
    "COLOURS",
    "SHAPES",
    "SPLITS",
    "Event",
    "MotionVideo",
    "WorldExpression",
    "WorldObject",
    "WorldQuestion",
    "WorldSettings",
    "make_still_video",
    "make_video",
    "sampled_frame_indices",
]
