"""Corpora: one reader each, and the table of all of them."""

from datasets.corpora.base import ON_PROBLEM, images_in, listed_files, read_listed_video, read_videos
from datasets.corpora.registry import CORPORA, SPELLINGS, Corpus, corpus_named, load

__all__ = [
    "CORPORA",
    "ON_PROBLEM",
    "SPELLINGS",
    "Corpus",
    "corpus_named",
    "images_in",
    "listed_files",
    "load",
    "read_listed_video",
    "read_videos",
]
