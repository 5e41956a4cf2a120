"""Prediction: videos and questions in, one record per question out; and the model that answers."""

from evaluation.engine.jobs import Prediction, VideoJob
from evaluation.engine.opening import load_model
from evaluation.engine.predict import DeviceLost, Options, forget_failures, predict_corpus, question_states
from evaluation.engine.predictor import MoraPredictor

__all__ = [
    "DeviceLost", "MoraPredictor", "Options", "Prediction", "VideoJob", "forget_failures",
    "load_model", "predict_corpus", "question_states",
]  # fmt: skip
