"""Results of benchmarks: as JSON and back, and as tables."""

import json

from toolkit.bench.result import BenchmarkResult, Result, Side, Timing
from toolkit.display import benchmark_lines

FAST = Side("fast[0]", "worker", {"kind": "fast"})
SLOW = Side("slow", "worker", {"kind": "slow"})
BROKEN = Side("broken", "worker", {"kind": "broken"})


def benchmark(name: str) -> BenchmarkResult:
    """Two sides at two batch sizes, and one side that failed."""
    fast = (Timing(8, 1234.5, (1234.5,), 1.0, 3, 6.5, 7.5, 8.5), Timing(1, 2.5, (2.5,), 1.0, 3, 400.0, 500.0, 600.0))
    slow = (Timing(8, 617.25, (617.25,), 0.5), Timing(1, 1.25, (1.25,), 0.5))
    return BenchmarkResult(
        benchmark=name,
        device="a processor",
        cores=2,
        libraries={"torch": "2"},
        settings={"images": 16, "quick": False},
        seconds=1.5,
        results=(
            Result(FAST, fast, 0.25, 5_000_000, {"file_bytes": 1_234_000, "accuracy": 0.9123}),
            Result(SLOW, slow, None, None, {"first_steps_seconds": 0.4}),
            Result(BROKEN, note="why it failed"),
        ),
        figures={"ratio_after_start": 0.625},
        notes=("cuda: not measured",),
    )


def test_json_gives_the_result_back():
    expected = benchmark("deploy")
    assert BenchmarkResult.from_dict(json.loads(json.dumps(expected.as_dict()))) == expected


def test_deploy_has_a_table_of_sides_and_one_of_timings():
    assert benchmark_lines(benchmark("deploy")).splitlines() == [
        "a processor, 2 cores, torch 2, images: 16",
        "",
        "side     file kB  start ms  memory MB  accuracy",
        "fast[0]    1,234     250.0          5    91.23%",
        "slow           -         -          -         -",
        "broken         -         -          -         -",
        "",
        "side     batch  p50 ms  p95 ms  p99 ms  images/s  ratio",
        "fast[0]      8    6.50    7.50    8.50     1,234   1.00",
        "slow         8       -       -       -       617   0.50",
        "fast[0]      1  400.00  500.00  600.00      2.50   1.00",
        "slow         1       -       -       -      1.25   0.50",
        "",
        "ratio after start: 0.62",
        "broken: why it failed",
        "cuda: not measured",
    ]


def test_train_has_one_table():
    assert benchmark_lines(benchmark("train")).splitlines()[2:7] == [
        "batch  side     images/s  ratio  start s  first 5 steps s  memory MB",
        "8      fast[0]     1,234   1.00      0.2                -          5",
        "8      slow          617   0.50        -              0.4          -",
        "1      fast[0]      2.50   1.00      0.2                -          5",
        "1      slow         1.25   0.50        -              0.4          -",
    ]


def test_predict_has_one_table():
    assert benchmark_lines(benchmark("predict")).splitlines()[2:4] == [
        "side     batch  p50 ms  images/s  ratio  memory MB",
        "fast[0]      8    6.50     1,234   1.00          5",
    ]
