"""Corpora: one reader each, and the table of all of them."""

from datasets.corpora.base import ON_PROBLEM
from datasets.corpora.registry import CORPORA, SPELLINGS, Corpus, corpus_named, load

__all__ = ["CORPORA", "ON_PROBLEM", "SPELLINGS", "Corpus", "corpus_named", "load"]
