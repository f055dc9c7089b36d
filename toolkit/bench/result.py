"""The results of a benchmark: sides, timings, and tables for the terminal."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Side:
    """What one process runs.

    Attributes:
        name: as tables show it.
        worker: the module that runs it, as `python -m` takes it.
        options: plain values for that module.
    """

    name: str
    worker: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Timing:
    """One side at one batch size.

    Attributes:
        batch_size: images per training step or per call.
        images_per_second: median over the rounds.
        rounds: images per second of each round.
        ratio: of `images_per_second` to that of the first side measured with this one, at the same batch size.
        calls: number of timed calls; 0 where a round is timed as a whole.
        p50_ms, p95_ms, p99_ms: percentiles of the time of a call, over all rounds.
    """

    batch_size: int
    images_per_second: float
    rounds: tuple[float, ...]
    ratio: float | None = None
    calls: int = 0
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None


@dataclass(frozen=True)
class Result:
    """The measurements of one side.

    Attributes:
        timings: one for each batch size, in the order measured; empty if the side failed, and `note` has the reason.
        start_seconds: time until the side is ready to be timed; each benchmark says from which moment on.
        memory: bytes; None where the system does not tell.
        figures: measurements that only some benchmarks take.
        note: why something was not measured, or not as requested.
    """

    side: Side
    timings: tuple[Timing, ...] = ()
    start_seconds: float | None = None
    memory: int | None = None
    figures: dict[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class BenchmarkResult:
    """All results of a benchmark, and the machine.

    Attributes:
        benchmark: "train", "predict" or "deploy".
        device: name of the hardware; None in records made before it was stored.
        cores: number of cores that the process may use.
        libraries: version of each library.
        settings: what was asked for.
        seconds: duration of the whole benchmark.
        figures: values that follow from several results.
        notes: what was not measured, and why.
    """

    benchmark: str
    device: str | None
    cores: int
    libraries: dict[str, str]
    settings: dict[str, Any]
    seconds: float
    results: tuple[Result, ...]
    figures: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "BenchmarkResult":
        """The result that `as_dict` gave, or that `--json` printed. Raises TypeError for other keys."""
        results = tuple(map(_result, values["results"]))
        return BenchmarkResult(**{**values, "results": results, "notes": tuple(values["notes"])})

    @property
    def heading(self) -> str:
        """The machine, the libraries and the settings on one line."""
        libraries = [f"{name} {version}" for name, version in self.libraries.items()]
        settings = [name if value is True else f"{name}: {value}" for name, value in self.settings.items() if value]
        return ", ".join([self.device or "unknown device", f"{self.cores} cores", *libraries, *settings])

    def tables(self) -> Iterator[tuple[tuple[str, ...], list[list[str]]]]:
        """Yield headings and rows of each table: a row per timing if it has a batch column, else a row per side."""
        for columns in TABLES[self.benchmark]:
            pairs = self._pair_timings() if "batch" in columns else [(result, None) for result in self.results]
            yield columns, [[COLUMNS[name](result, timing) for name in columns] for result, timing in pairs]

    def _pair_timings(self) -> list[tuple[Result, Timing | None]]:
        """Every timing with its side: all sides at one batch size, then at the next."""
        pairs = [(result, timing) for result in self.results for timing in result.timings]
        sizes = list(dict.fromkeys(timing.batch_size for _, timing in pairs))
        return [pair for size in sizes for pair in pairs if pair[1].batch_size == size]

    def all_notes(self) -> list[str]:
        """The figures, the notes on single sides, then those on the whole."""
        figures = [f"{name.replace('_', ' ')}: {value:.2f}" for name, value in self.figures.items()]
        return [*figures, *(f"{r.side.name}: {r.note}" for r in self.results if r.note), *self.notes]


def _result(values: Mapping[str, Any]) -> Result:
    timings = tuple(Timing(**{**timing, "rounds": tuple(timing["rounds"])}) for timing in values["timings"])
    return Result(**{**values, "side": Side(**values["side"]), "timings": timings})


def _number(value: float | None, form: str, *, unit: float = 1) -> str:
    return "-" if value is None else format(value / unit, form)


# Heading -> the cell for a side and one of its timings.
COLUMNS: dict[str, Callable[[Result, Any], str]] = {
    "side": lambda result, _: result.side.name,
    "batch": lambda _, timing: str(timing.batch_size),
    "images/s": lambda _, timing: _number(
        timing.images_per_second, ",.0f" if timing.images_per_second >= 10 else ".2f"
    ),
    "ratio": lambda _, timing: _number(timing.ratio, ".2f"),
    "p50 ms": lambda _, timing: _number(timing.p50_ms, ",.2f"),
    "p95 ms": lambda _, timing: _number(timing.p95_ms, ",.2f"),
    "p99 ms": lambda _, timing: _number(timing.p99_ms, ",.2f"),
    "start s": lambda result, _: _number(result.start_seconds, ",.1f"),
    "start ms": lambda result, _: _number(result.start_seconds, ",.1f", unit=1e-3),
    "first 5 steps s": lambda result, _: _number(result.figures.get("first_steps_seconds"), ",.1f"),
    "memory MB": lambda result, _: _number(result.memory, ",.0f", unit=1e6),
    "file kB": lambda result, _: _number(result.figures.get("file_bytes"), ",.0f", unit=1e3),
    "accuracy": lambda result, _: _number(result.figures.get("accuracy"), ".2%"),
}

# Benchmark -> the columns of each of its tables.
TABLES: dict[str, tuple[tuple[str, ...], ...]] = {
    "train": (("batch", "side", "images/s", "ratio", "start s", "first 5 steps s", "memory MB"),),
    "predict": (("side", "batch", "p50 ms", "images/s", "ratio", "memory MB"),),
    "deploy": (
        ("side", "file kB", "start ms", "memory MB", "accuracy"),
        ("side", "batch", "p50 ms", "p95 ms", "p99 ms", "images/s", "ratio"),
    ),
}
