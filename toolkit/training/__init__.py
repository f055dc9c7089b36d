"""Training: recipe and images in, checkpoint out."""

from toolkit.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from toolkit.training.data import DataSource, Images, find_data
from toolkit.training.loop import EpochRecord, train
from toolkit.training.recipe import Recipe, load_recipe
from toolkit.training.run import RunFolder, create_run, newest_finished_run, open_run
from toolkit.training.seeds import SeedRuns, Spread, begin_seeds, find_seeds, spread

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
    "find_seeds",
    "load_checkpoint",
    "load_recipe",
    "newest_finished_run",
    "open_run",
    "save_checkpoint",
    "spread",
    "train",
]
