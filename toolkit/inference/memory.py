"""Limit the memory of ONNX Runtime: a small file can request any amount, by broadcasting two tensors."""

from functools import cache

import onnxruntime

# Of all sessions on the CPU: four times the memory of resnet20 for a batch of 4096 images.
MAX_MEMORY_BYTES = 4 * 2**30


def limit_memory(options: onnxruntime.SessionOptions) -> None:
    """Let sessions on the CPU that are opened with `options` share one arena of at most `MAX_MEMORY_BYTES`.

    A call that needs more fails with an error of ONNX Runtime, without allocating.
    """
    _register_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")


@cache
def _register_arena() -> None:
    place = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    default = -1  # growth of the arena
    onnxruntime.create_and_register_allocator(
        place, onnxruntime.OrtArenaCfg(MAX_MEMORY_BYTES, default, default, default)
    )
