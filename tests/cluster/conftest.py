"""A Ray cluster of this machine, whose nodes can be killed."""

import os
import sys
import tempfile

import pytest

from tests.support.ray_nodes import SMALL


@pytest.fixture(scope="module")
def ray_folder():
    """A folder for Ray's logs and sockets, whose paths must be short; Ray itself never removes it."""
    if sys.platform != "linux":
        pytest.skip("Ray has clusters of several nodes on Linux only, and the tests read /proc")
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'cifar[cluster]'")
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
    ):
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield folder


@pytest.fixture(scope="module")
def ray_head(ray_folder, tmp_path_factory):
    """A cluster with a head that has no CPU, so that no job runs there."""
    import ray
    from ray._private.utils import get_ray_address_file
    from ray.cluster_utils import Cluster

    settings = {
        "health_check_period_ms": 1000,
        "health_check_failure_threshold": 5,
        "worker_niceness": 0,  # by default the jobs give way to every other program
    }
    head = {"num_cpus": 0, "temp_dir": ray_folder, "_system_config": settings, **SMALL}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))  # of pictures, for the jobs too
        os.makedirs(os.path.dirname(get_ray_address_file(None)), exist_ok=True)  # Ray writes there, whatever `temp_dir`
        cluster = Cluster(initialize_head=True, head_node_args=head)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def ray_cluster(ray_head):
    """The cluster, with two nodes of one CPU: those that earlier tests killed are replaced."""
    while len(ray_head.worker_nodes) < 2:
        ray_head.add_node(wait=False, num_cpus=1, **SMALL)
    ray_head.wait_for_nodes()
    return ray_head
