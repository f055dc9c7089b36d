"""The figures of every seed of one recipe on the whole test set, and what spreads between them."""

from dataclasses import asdict, dataclass
from typing import Any

from toolkit.deploy.evaluate import evaluate
from toolkit.names import as_text
from toolkit.training.checkpoint import load_checkpoint
from toolkit.training.data import DataSource
from toolkit.training.metrics import Metrics
from toolkit.training.seeds import SeedRuns, spread


@dataclass(frozen=True)
class SeedsMetrics:
    """Figures of every seed of one recipe on the test set.

    Attributes:
        together: the runs.
        epochs: of each seed, the epoch whose weights were measured.
        metrics: of each seed.
    """

    together: SeedRuns
    epochs: tuple[int, ...]
    metrics: tuple[Metrics, ...]

    def as_dict(self) -> dict[str, Any]:
        """Mean, sample standard deviation, minimum and n of the figures; then each seed's, without its matrix."""
        rows: list[dict[str, Any]] = [
            {"seed": seed, "file": as_text(run.best), "epoch": epoch} | metrics.as_dict()
            for seed, (run, epoch, metrics) in enumerate(
                zip(self.together.runs, self.epochs, self.metrics, strict=True)
            )
        ]
        figures = {
            name: asdict(spread(row[name] for row in rows)) for name in ("accuracy", "loss", "calibration_error")
        }
        for row in rows:
            del row["confusion"]
        return {"folder": as_text(self.together.path), "n": self.together.n, "figures": figures, "seeds": rows}


def evaluate_seeds(together: SeedRuns, *, source: DataSource, device: str = "auto") -> SeedsMetrics:
    """Measure the best checkpoint of every seed, as `evaluate` does: that of the last epoch where none are held out.

    Raises:
        ToolkitError: a seed is not finished, or is one of another recipe or of other data.
        UsageError: no such device.
    """
    together.require_finished()
    return SeedsMetrics(
        together=together,
        epochs=tuple(load_checkpoint(run.best).epoch for run in together.runs),
        metrics=tuple(evaluate(run.best, source=source, device=device) for run in together.runs),
    )
