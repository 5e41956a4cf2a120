"""A tiny pretrained base for the demo and the tests."""

from training.tiny_base.base import BaseRecipe, make_tiny_base

__all__ = ["BaseRecipe", "make_tiny_base"]
