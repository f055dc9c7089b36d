"""The learning rate, against values worked out by hand."""

import math

import pytest

from toolkit.recipes.recipe import Recipe
from toolkit.recipes.schedule import learning_rate


def test_cosine_annealing():
    recipe = Recipe(learning_rate=0.05, epochs=150)
    for done, expected in [(0, 0.05), (37.5, 0.025 * (1 + math.sqrt(0.5))), (75, 0.025), (150, 0)]:
        assert learning_rate(recipe, done) == pytest.approx(expected, abs=1e-12)


def test_linear_with_warmup():
    recipe = Recipe(learning_rate=0.1, epochs=60, lr_schedule="linear", warmup_epochs=10)
    for done, expected in [(0, 0), (5, 0.05), (10, 0.1), (35, 0.05), (60, 0)]:
        assert learning_rate(recipe, done) == pytest.approx(expected, abs=1e-12)


def test_step_decay():
    recipe = Recipe(learning_rate=0.1, epochs=10, lr_schedule="step_decay", lr_milestones=(5, 8), lr_gamma=0.2)
    for done, expected in [(0, 0.1), (4.99, 0.1), (5, 0.02), (7.9, 0.02), (8, 0.004), (9.9, 0.004)]:
        assert learning_rate(recipe, done) == pytest.approx(expected)
