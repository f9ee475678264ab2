"""Where a result was made: host, processor, device and versions. Stored beside results, outside every digest."""

import importlib.metadata
import os
import platform
import socket
import sys
from typing import Any

_PACKAGES = ("rdpm", "torch", "numpy", "deepspeed", "ray", "zarr", "pyarrow", "pillow", "flash-attn")


def environment() -> dict[str, Any]:
    """Host, platform, Python and GPU of this process, and versions of the packages that results may depend on."""
    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "gpu": _gpu(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu() -> str | None:
    """Name of the GPU that this process uses, with the version of CUDA; None where it uses none."""
    torch = sys.modules.get("torch")  # a process that has not imported torch must not import it for this
    if torch is None or not torch.cuda.is_available():
        return None
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
