"""Training: recipe and images in, checkpoint out."""

from toolkit.data.dataset import DataSource, find_data
from toolkit.data.images import Images
from toolkit.recipes.recipe import Recipe, load_recipe
from toolkit.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from toolkit.runs.folder import RunFolder, create_run, find_newest_finished_run, open_run
from toolkit.runs.seeds import SeedRuns, Spread, begin_seeds, find_seeds, spread
from toolkit.training.trainer import EpochRecord, train

__all__ = [
    "Checkpoint",
    "DataSource",
    "EpochRecord",
    "Images",
    "Recipe",
    "RunFolder",
    "SeedRuns",
    "Spread",
    "begin_seeds",
    "create_run",
    "find_data",
    "find_newest_finished_run",
    "find_seeds",
    "load_checkpoint",
    "load_recipe",
    "open_run",
    "save_checkpoint",
    "spread",
    "train",
]
