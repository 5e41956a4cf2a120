"""Prediction: videos and questions in, one record per question out."""

from evaluation.engine.jobs import Prediction, VideoJob
from evaluation.engine.predict import DeviceLost, Options, forget_failures, predict_corpus, question_states
from evaluation.engine.predictor import MoraPredictor

__all__ = [
    "DeviceLost", "MoraPredictor", "Options", "Prediction", "VideoJob", "forget_failures",
    "predict_corpus", "question_states",
]  # fmt: skip
