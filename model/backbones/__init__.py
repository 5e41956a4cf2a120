"""Multimodal LLMs: frames and token ids in, hidden states out."""
