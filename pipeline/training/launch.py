"""Starting the ranks of a training job."""

import os
import subprocess
import sys


def under_launcher() -> bool:
    """Whether torchrun, deepspeed or a scheduler already started this process as a rank."""
    return "RANK" in os.environ


def launch(ranks: int, arguments: list[str]) -> None:
    """Run `rdpm` with these arguments once a rank under torchrun, and wait. Raises ValueError when a rank fails."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    quiet = {"TORCHELASTIC_ERROR_FILE": "", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    done = subprocess.run([*command, "-m", "jobs.cli", *arguments], env={**os.environ, **quiet}, check=False)
    if done.returncode:
        raise ValueError(f"training stopped: a rank of {ranks} failed with exit code {done.returncode}; see above")
