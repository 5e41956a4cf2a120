"""Multimodal language models: frames and words in, states and words out. One file each, opened by its name."""

from model.backbones.interface import BACKBONES, Backbone, backbone_class
from model.backbones.sessions import Prefix, Session, generate, not_finite, read_prefix, read_rows

__all__ = [
    "BACKBONES",
    "Backbone",
    "Prefix",
    "Session",
    "backbone_class",
    "generate",
    "not_finite",
    "read_prefix",
    "read_rows",
]
