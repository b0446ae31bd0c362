"""A GPU to compile for, on a machine that has none.

The plugin of jax for CUDA compiles for a GPU that it is told about. Nothing is tuned then: kernels
are those that XLA takes by default.

>>> sharding = jax.sharding.SingleDeviceSharding(h100())  # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

from jax.experimental import topologies

_H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_core: 233472 shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_memory_size: 84978434048
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""What XLA has to know of an H100 SXM: figures that NVIDIA publishes."""


def h100() -> Any:
    """An H100; XLA_FLAGS for other compilers have to be unset.

    jax loads the plugin when it is first used. Without the libraries that only running takes, it
    does so if JAX_SKIP_CUDA_CONSTRAINTS_CHECK is 1.

    Raises:
      ValueError: the compiler is not installed, or was not loaded.
    """
    try:
        described = topologies.get_topology_desc(
            platform="cuda", topology_name="", target_config=_H100, topology="1x1x1"
        )
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise ValueError(
            f"Cannot compile for an H100: {str(error).splitlines()[0]}\nExpected the packages "
            "jax-cuda12-plugin and jax-cuda12-pjrt of jax's version, and nvidia-cuda-nvcc-cu12: "
            "install them, and set JAX_SKIP_CUDA_CONSTRAINTS_CHECK to 1 before jax is used."
        ) from error
    return described.devices[0]
