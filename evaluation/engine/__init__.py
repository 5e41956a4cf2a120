"""Prediction: videos and questions in, one record per question out."""
