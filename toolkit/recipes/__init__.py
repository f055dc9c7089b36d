"""Recipes: every choice of a training run, its presets and its schedule."""
