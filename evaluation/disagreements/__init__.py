"""Teaching cases on which evaluators disagree: ``python -m evaluation.disagreements``."""
