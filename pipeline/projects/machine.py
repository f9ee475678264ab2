"""What this process may use of its machine."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

_GROUPS = Path("/sys/fs/cgroup")
_FAST_BF16 = ("avx512_bf16", "amx_bf16")


@dataclass(frozen=True)
class Machine:
    """Cores, memory and GPUs."""

    cores: int
    """CPU cores that this process may use at a time."""
    memory: int
    """Bytes of main memory that it may use."""
    gpus: int
    """CUDA devices."""
    gpu_memory: int
    """Bytes of memory of the smallest of them; 0 without one."""
    bf16: bool
    """Whether the devices that train compute fast in bfloat16."""

    @property
    def rank_memory(self) -> int:
        """Bytes that one rank may use, if one runs on every GPU, or without GPUs one on every core."""
        return self.gpu_memory or self.memory // self.cores


def this_machine() -> Machine:
    """The machine of this process, within the limits of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _limit("cpu.max").partition(" ")
    if quota.isdecimal():
        cores = min(cores, max(1, int(quota) // int(period)))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if (most := _limit("memory.max")).isdecimal():
        memory = min(memory, int(most))
    gpus = [torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count())]
    bf16 = torch.cuda.is_bf16_supported() if gpus else any(word in _processor() for word in _FAST_BF16)
    return Machine(cores, memory, len(gpus), min(gpus, default=0), bf16)


def _limit(name: str) -> str:
    """A limit of the container, as version 2 of control groups says it; "" where there is none."""
    try:
        return (_GROUPS / name).read_text().strip()
    except OSError:
        return ""


def _processor() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
