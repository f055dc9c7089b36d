"""A Ray cluster of this machine, whose nodes can be killed."""

import pytest


@pytest.fixture(scope="module")
def ray_head(tmp_path_factory):
    """A cluster with a head that has no CPU, so that no job runs there."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'cifar[cluster]'")
    from ray.cluster_utils import Cluster

    settings = {
        "health_check_period_ms": 1000,
        "health_check_failure_threshold": 5,
        "worker_niceness": 0,  # by default the jobs give way to every other program
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))  # of pictures, for the jobs too
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": settings, **MEMORY})
        yield cluster
        ray.shutdown()
        cluster.shutdown()


MEMORY = {"object_store_memory": 100 * 2**20}


@pytest.fixture
def ray_cluster(ray_head):
    """The cluster, and two new nodes of one CPU."""
    nodes = [ray_head.add_node(num_cpus=1, **MEMORY) for _ in range(2)]
    ray_head.wait_for_nodes()
    yield ray_head, nodes
    for node in nodes:
        if node in ray_head.worker_nodes:
            ray_head.remove_node(node, allow_graceful=False)
