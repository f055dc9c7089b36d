"""Set up torch for this machine: device, number format, threads, cuDNN and the allocator."""

import ctypes
import os
import platform
import sys

import torch

from toolkit.cores import available_cores
from toolkit.errors import UsageError, first_line

BUSY_SHARE = 0.25  # fraction of the threads' time spent waiting for a core; training is clearly slower above it


def choose_device(name: str = "auto") -> torch.device:
    """Return the torch device with this name; "auto" selects CUDA if available, else MPS, else the CPU.

    Raises:
        UsageError: unknown device, or torch cannot use it on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind = name.split(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise UsageError(f"cannot use the device {name!r}: the devices are auto, cpu, cuda, cuda:N and mps")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"cannot use the device {name!r} on this machine: {first_line(error)}; `cifar doctor` lists the devices"
        ) from error
    return device


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the number format of the forward pass; "auto" selects bfloat16 if the device supports it natively."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and _cpu_has_bfloat16()
    return torch.bfloat16 if native else torch.float32


def _cpu_has_bfloat16() -> bool:
    """Return whether the processor has AMX or AVX-512-BF16; without them bfloat16 is emulated and slow."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def device_name(device: torch.device) -> str:
    """Return the hardware's name for summaries, with the number of threads if the CPU computes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"{_cpu_model()}, Apple MPS"
    return f"{_cpu_model()}, {torch.get_num_threads()} threads"


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def limit_threads() -> None:
    """Limit torch's threads to the available cores, unless the user has set OMP_NUM_THREADS.

    Torch respects the affinity but not a container's quota; the kernel suspends the threads that exceed the quota.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), available_cores()))


def describe_busy_cores(device: torch.device, *, threads: int, seconds: float, waiting_seconds: float) -> str:
    """Return a note if other programs held the cores for much of a training epoch, else "".

    Threads wait for one another at each layer, so one thread can be faster than two: beside two busy processes on two
    cores, one thread trained at 320 to 360 images/s, two at either 300 to 370 or 45 to 50 (batch 64, short spinning).

    Args:
        device: only training on the CPU competes for cores.
        threads: number of threads of a step.
        seconds: wall time of the steps.
        waiting_seconds: time in which threads were ready to run and had no core, summed over the threads
            (`cores.waiting_seconds`).
    """
    share = waiting_seconds / (threads * seconds)
    if device.type != "cpu" or threads == 1 or share < BUSY_SHARE:
        return ""
    return (
        f"other programs use the same cores: the {threads} training threads waited {share:.0%} of the time for a core, "
        "and for one another. If these programs keep running, stop the training with Ctrl-C and resume it with "
        f"OMP_NUM_THREADS={max(1, int((1 - share) * threads))}: it may be faster, and the weights then differ slightly"
    )


def enable_cudnn_benchmark(device: torch.device) -> None:
    """Let cuDNN choose the fastest algorithm for each shape by timing them: a run has few shapes and many steps."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True


def keep_freed_memory() -> None:
    """Make glibc keep freed activations in the process instead of returning them to the kernel.

    A training step frees hundreds of megabytes and allocates them again; by default glibc maps and unmaps them, and
    the kernel clears every page each time. No effect with other C libraries.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    m_trim_threshold, m_mmap_threshold = -1, -3  # <malloc.h>
    libc = ctypes.CDLL(None)
    # Blocks below this size in bytes come from the heap. Older releases accept at most 32 MiB.
    if not libc.mallopt(m_mmap_threshold, 1 << 30):
        libc.mallopt(m_mmap_threshold, 1 << 25)
    libc.mallopt(m_trim_threshold, (1 << 31) - 1)  # bytes kept at the end of the heap: the largest int
