"""Mask decoders: frames and prompts in, mask logits out."""
