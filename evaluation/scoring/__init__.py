"""From records and ground truth to scores, means and intervals; imports no model."""

from evaluation.scoring.masks import MASKS, MEANS, ROWS, Row, mask_state, means, score_masks
from evaluation.scoring.pool import ScoringPool
from evaluation.scoring.score import POOL_PIXELS, pixels_to_score, score_corpus, score_video
from evaluation.scoring.statistics import METHOD, VideoBootstrap
from evaluation.scoring.summary import SUMMARY_FORMAT, best_baseline, row_values, split_table, summarise
from evaluation.scoring.truth import ClipTruth, Truth, question_window

__all__ = [
    "MASKS", "MEANS", "METHOD", "POOL_PIXELS", "ROWS", "SUMMARY_FORMAT", "ClipTruth", "Row", "ScoringPool", "Truth",
    "VideoBootstrap", "best_baseline", "mask_state", "means", "pixels_to_score", "question_window", "row_values",
    "score_corpus", "score_masks", "score_video", "split_table", "summarise",
]  # fmt: skip
