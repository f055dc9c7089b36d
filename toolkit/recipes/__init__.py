"""Recipes: hyperparameters, their presets and the learning rate schedule."""
