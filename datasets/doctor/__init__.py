"""Examine a corpus before it is used: ``python -m datasets.doctor``."""

from datasets.doctor.clip import ClipTask, mask_source
from datasets.doctor.drift import Drift, DriftProbe
from datasets.doctor.examination import Options
from datasets.doctor.files import look_at_frame, look_at_mask
from datasets.doctor.findings import Findings
from datasets.doctor.run import NAMES, examine_corpus, open_examination

__all__ = [
    "NAMES",
    "ClipTask",
    "Drift",
    "DriftProbe",
    "Findings",
    "Options",
    "examine_corpus",
    "look_at_frame",
    "look_at_mask",
    "mask_source",
    "open_examination",
]
