"""Mask decoders: frames and prompts in, mask logits out. One file per family; a further one is opened by its name."""

from model.segmenters.interface import SEGMENTERS, Embeddings, Segmenter, segmenter_class
from model.segmenters.sam import SamSegmenter
from model.segmenters.sam_attention import attend_biased, attend_flex, attend_folded, attend_plain
from model.segmenters.sam_encoder import FastEncoder
from model.segmenters.sam_sizes import sam_config

__all__ = [
    "SEGMENTERS",
    "Embeddings",
    "FastEncoder",
    "SamSegmenter",
    "Segmenter",
    "attend_biased",
    "attend_flex",
    "attend_folded",
    "attend_plain",
    "sam_config",
    "segmenter_class",
]
