"""The parts of `cifar`: `training`, `deploy` and `inference`. Importing this package imports none of them."""

__version__ = "0.1.0"
