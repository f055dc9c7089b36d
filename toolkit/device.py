"""The machine's side of a run: which device, which number format, and memory that stays in the process."""

import ctypes
import os
import platform
import sys

import torch

from toolkit.cores import available_cores
from toolkit.errors import UsageError


def choose_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA where torch can use it, else Apple's MPS, else the CPU.

    Raises:
        UsageError: no such device, or torch cannot use it here.
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
    """The number format of the forward pass: bfloat16 under `auto` where the device computes in it natively."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and _cpu_has_bfloat16()
    return torch.bfloat16 if native else torch.float32


def _cpu_has_bfloat16() -> bool:
    """Whether the processor has AMX or AVX-512-BF16, in whose absence bfloat16 is emulated and slow."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def device_name(device: torch.device) -> str:
    """What the summary calls the hardware."""
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
    """Take no more threads than the cores that this process may use; a number in OMP_NUM_THREADS is left as it is.

    Torch itself heeds the affinity, but not a container's quota, beyond which its threads are stopped at every turn.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), available_cores()))


def note_on_crowded_cores(device: torch.device, *, threads: int, seconds: float, processor_seconds: float) -> str:
    """What to tell a user whose training shares its cores with other programs; "" where there is nothing to say.

    At every layer the threads wait for the one that lost its core: beside busy programs on two cores, two threads were
    seen to train at an eighth of the speed of one. Idle threads spin, so on free cores nearly all of their time counts.

    Args:
        threads: that a step is spread over.
        seconds: of wall time that the steps took.
        processor_seconds: that this process had in them, over all threads.
    """
    share = processor_seconds / (threads * seconds)
    if device.type != "cpu" or threads == 1 or share > 0.75:
        return ""
    return (
        f"other programs keep the cores busy: {threads} threads had only {share:.0%} of the time, and wait for each "
        f"other; stopped with Ctrl-C and resumed with OMP_NUM_THREADS={max(1, int(share * threads))}, this run may "
        "well be faster"
    )


def let_cudnn_choose(device: torch.device) -> None:
    """Let cuDNN time its algorithms for each shape: a run has few shapes and many steps."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True


def keep_freed_memory() -> None:
    """Tell glibc to keep freed activations in the process instead of returning each one to the kernel.

    A training step frees hundreds of megabytes and asks for them again at once; by default glibc maps and unmaps
    them, and the kernel clears every page each time. Other C libraries are left as they are.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    m_trim_threshold, m_mmap_threshold = -1, -3  # <malloc.h>
    libc = ctypes.CDLL(None)
    # Bytes; larger blocks only are mapped one by one. Older releases take no more than 32 MiB.
    if not libc.mallopt(m_mmap_threshold, 1 << 30):
        libc.mallopt(m_mmap_threshold, 1 << 25)
    libc.mallopt(m_trim_threshold, (1 << 31) - 1)  # bytes kept at the heap's end: as many as the parameter can say
