"""How the model is judged: metrics, protocol, prediction, scoring, report."""
