"""Measurements: what is fast, by how much, on which machine."""
