"""A procedural world of moving objects: exact masks, exact action windows, and questions only motion can answer."""

from datasets.synthetic.corpora import CorpusPlan, write_corpora
from datasets.synthetic.render import Renderer
from datasets.synthetic.settings import COLOURS, SHAPES, WorldSettings
from datasets.synthetic.world import make_still_video, make_video

__all__ = [
    "COLOURS",
    "SHAPES",
    "CorpusPlan",
    "Renderer",
    "WorldSettings",
    "make_still_video",
    "make_video",
    "write_corpora",
]
