"""Where something was made: host, processor, device and versions. Kept beside results, outside every digest."""

import importlib.metadata
import os
import platform
import socket
import sys
from typing import Any

_PACKAGES = ("rdpm", "torch", "numpy", "deepspeed", "ray", "zarr", "pyarrow", "pillow", "flash-attn")


def environment() -> dict[str, Any]:
    """This process's host, platform, Python, versions of the packages that results may depend on, and GPU."""
    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "gpu": _gpu(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu() -> str | None:
    """Name of the GPU that this process uses, with the version of CUDA; None where it uses none."""
    torch = sys.modules.get("torch")  # a process that does without torch shall go on doing so
    if torch is None or not torch.cuda.is_available():
        return None
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
