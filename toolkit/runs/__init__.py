"""Runs: their folders, their checkpoints, and several seeds of one recipe."""
