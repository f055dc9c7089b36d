"""The records of a run, also as event files that TensorBoard shows."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.training.trainer import EpochRecord


def logged(records: Iterable[EpochRecord], folder: Path) -> Iterator[EpochRecord]:
    """Pass the records on, and write each one's figures into event files in `folder`.

    Raises:
        ToolkitError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ToolkitError('--tensorboard needs TensorBoard: pip install "cifar[tensorboard]"') from error
    with SummaryWriter(str(folder)) as writer:
        for record in records:
            for name, value in dataclasses.asdict(record).items():
                if name != "epoch" and value is not None:
                    writer.add_scalar(name, value, record.epoch)
            writer.flush()
            yield record
