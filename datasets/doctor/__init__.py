"""Examine a corpus before it is used: ``python -m datasets.doctor``."""
