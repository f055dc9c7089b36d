"""Open the engine that `--on` names."""

from toolkit.cluster.jobs import Engine
from toolkit.cluster.local_engine import LocalEngine
from toolkit.cluster.ray_engine import RayEngine, count_gpus
from toolkit.cores import available_cores
from toolkit.errors import UsageError


def open_prediction_engine(on: str) -> Engine:
    """The engine for jobs that use one processor core each.

    Args:
        on: "local" for the processes of this machine, "ray", or the address of a Ray cluster.

    Raises:
        UsageError: Ray is not installed.
        ToolkitError: the cluster is not reached.
    """
    return LocalEngine(available_cores()) if on == "local" else RayEngine(_address(on))


def open_training_engine(on: str, *, device: str, gpu_share: float) -> Engine:
    """The engine for jobs that train: on a GPU where there is one, else on one processor core each.

    Args:
        on: as `open_prediction_engine` takes it.
        device: as `train` takes it. `local` uses one GPU of this machine.
        gpu_share: of one GPU for each job, in (0, 1].

    Raises:
        UsageError: an impossible share or device; Ray is not installed.
        ToolkitError: the cluster is not reached.
    """
    if not 0 < gpu_share <= 1:
        raise UsageError(f"the share of a GPU must lie above 0 and be at most 1, not {gpu_share}")
    if on == "local":
        from toolkit.device import choose_device  # imports torch, which prediction does without

        return LocalEngine(available_cores() if choose_device(device).type == "cpu" else int(1 / gpu_share))
    address = _address(on)
    wants_gpu = device.startswith("cuda") or (device == "auto" and count_gpus(address) > 0)
    return RayEngine(address, num_gpus=gpu_share if wants_gpu else 0)


def _address(on: str) -> str | None:
    return None if on == "ray" else on
