"""A limit on what ONNX Runtime may allocate: a small file can ask for any amount, by broadcasting two tensors."""

from functools import cache

import onnxruntime

# Of all sessions on the CPU together: four times what a batch of 4096 images takes with resnet20.
MAX_MEMORY_BYTES = 4 * 2**30


def limit_memory(options: onnxruntime.SessionOptions) -> None:
    """Sessions on the CPU that are opened with `options` share one arena of at most `MAX_MEMORY_BYTES`.

    What needs more fails as a call that ONNX Runtime cannot serve, and takes nothing.
    """
    _register_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")


@cache
def _register_arena() -> None:
    place = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    default = -1  # for how the arena grows
    onnxruntime.create_and_register_allocator(
        place, onnxruntime.OrtArenaCfg(MAX_MEMORY_BYTES, default, default, default)
    )
