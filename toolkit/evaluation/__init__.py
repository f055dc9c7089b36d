"""Evaluation: the figures of a model on labeled images, and plots."""
