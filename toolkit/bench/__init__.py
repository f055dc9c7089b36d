"""Benchmarks: timings of training, prediction and deployment on this machine."""
