"""Readers of image corpora: a record is one picture, a clip of a single frame."""
