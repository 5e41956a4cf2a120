"""How the model is judged: predict once, score from the records, report both sides of the metric."""
