"""Running a worker script on several ranks, as a user's launcher would."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def run_ranks(script: str, ranks: int, *arguments: str, timeout: int = 600, fails: bool = False) -> str:
    """Run tests/pipeline/training/<script> under torchrun with `ranks` processes; returns what they printed.

    fails: it has to, and what is returned is what it printed of its errors.
    """
    path = Path(__file__).with_name(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=timeout)
    assert (done.returncode != 0) == fails, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stderr if fails else done.stdout
