"""A tiny pretrained base for the demo and the tests."""
