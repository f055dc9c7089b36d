"""Hardware settings of a run: device, number format of the forward pass, threads and memory."""

import ctypes
import os
import platform
import sys

import torch

from toolkit.cores import available_cores
from toolkit.errors import UsageError


def choose_device(name: str = "auto") -> torch.device:
    """Return the torch device of that name; `auto` prefers CUDA, then Apple's MPS, then the CPU.

    Raises:
        UsageError: the name is unknown, or torch cannot use the device on this machine.
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
        reason = str(error).strip().split("\n")[0]
        raise UsageError(f"cannot use the device {name!r} here: {reason}") from error
    return device


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the number format of the forward pass; `auto` is bfloat16 on devices that compute in it natively."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and _cpu_has_bfloat16()
    return torch.bfloat16 if native else torch.float32


def _cpu_has_bfloat16() -> bool:
    """Whether the processor has AMX or AVX-512-BF16; without them, bfloat16 is emulated and slow."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def device_name(device: torch.device) -> str:
    """Return the name of the hardware, for the summary of a run."""
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


def use_available_cores() -> None:
    """Limit torch's threads to the cores that this process may use; OMP_NUM_THREADS takes precedence.

    Torch respects the affinity, but not a container's quota: threads beyond it are throttled by the kernel.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), available_cores()))


def note_on_crowded_cores(device: torch.device, *, threads: int, seconds: float, processor_seconds: float) -> str:
    """Return a note for a user whose training shares its cores with other programs, or "" if it does not.

    At every layer, the threads wait for the one that lost its core. On idle cores the share of processor time was 0.90
    with two threads (batch 64, `toolkit.cores.SPIN_COUNT`).

    Args:
        threads: of each step.
        seconds: wall time of the steps.
        processor_seconds: of this process during the steps, over all threads.
    """
    share = processor_seconds / (threads * seconds)
    if device.type != "cpu" or threads == 1 or share > 0.75:
        return ""
    return (
        f"other programs keep the cores busy: {threads} threads had only {share:.0%} of the processor time, and wait "
        "for one another; this run may be faster if you stop it with Ctrl-C and resume it with "
        f"OMP_NUM_THREADS={max(1, int(share * threads))}"
    )


def let_cudnn_choose(device: torch.device) -> None:
    """Let cuDNN time its algorithms for each shape: a run has few shapes and many steps."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True


def keep_freed_memory() -> None:
    """Let glibc keep freed activations in the process instead of returning each one to the kernel.

    A training step frees hundreds of megabytes and allocates them again at once; by default glibc maps and unmaps
    them, and the kernel clears every page each time. With other C libraries nothing is changed.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    m_trim_threshold, m_mmap_threshold = -1, -3  # <malloc.h>
    libc = ctypes.CDLL(None)
    # Bytes; only larger blocks are mapped one by one. Older releases accept at most 32 MiB.
    if not libc.mallopt(m_mmap_threshold, 1 << 30):
        libc.mallopt(m_mmap_threshold, 1 << 25)
    libc.mallopt(m_trim_threshold, (1 << 31) - 1)  # bytes kept at the heap's end: as many as the parameter can say
