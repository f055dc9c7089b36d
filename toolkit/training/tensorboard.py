"""The records of a run as event files for TensorBoard."""

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.training.trainer import EpochRecord


def require_tensorboard() -> None:
    """Raises `ToolkitError` if TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ToolkitError('--tensorboard needs TensorBoard: pip install "cifar[tensorboard]"')


@contextmanager
def tensorboard_log(folder: Path) -> Iterator[Callable[[EpochRecord], None]]:
    """Yield a function that writes the numbers of a record into event files in `folder`."""
    require_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    def log(record: EpochRecord) -> None:
        for name, value in dataclasses.asdict(record).items():
            if name != "epoch" and value is not None:
                writer.add_scalar(name, value, record.epoch)
        writer.flush()

    with SummaryWriter(str(folder)) as writer:
        yield log
