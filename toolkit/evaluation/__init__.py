"""Evaluation: the figures of a model on labelled images, and plots."""
