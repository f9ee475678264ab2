"""Start the ranks of a training on this machine, and end them with it."""

import ctypes
import os
import signal
import sys
import tempfile
from typing import Any

from rdpm.pipeline.foundation.config import save_config
from rdpm.pipeline.foundation.lease import Lease

_STARTED_HERE = "RDPM_STARTED_RANKS"
_PR_SET_PDEATHSIG = 1


def under_launcher() -> bool:
    """Whether torchrun, deepspeed or a scheduler started this process as a rank."""
    return "RANK" in os.environ


def first_rank() -> bool:
    """Whether this process is the first rank, or not one of several."""
    return os.environ.get("RANK", "0") == "0"


def launch(ranks: int, job: str, config: Any, lease: Lease) -> None:
    """Run a job in one process per rank, as torchrun does, and wait. The processes get the config as a file.

    lease: of the job's output; this process goes on holding it for the ranks. SIGTERM is passed on to them. Raises
    ValueError naming the first rank that failed; the others are ended within 30 s.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ[_STARTED_HERE] = "1"
    elastic = LaunchConfig(1, 1, ranks, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0)
    with tempfile.TemporaryDirectory() as folder, lease.lent():
        path = os.path.join(folder, "config.yaml")
        save_config(path, job, config)
        try:
            elastic_launch(elastic, sys.executable)("-u", "-m", "rdpm", job, path)
        except SignalException as stopped:
            sys.exit(128 + stopped.sigval)
        except ChildFailedError as failed:
            rank, failure = failed.get_first_failure()
            raise ValueError(
                f"training stopped: rank {rank} of {ranks} ended with exit code {failure.exitcode}; see above"
            ) from None
        finally:
            del os.environ[_STARTED_HERE]


def end_with_launcher() -> None:
    """On a rank that `launch` started: end when the launcher is killed."""
    if _STARTED_HERE in os.environ:
        _die_with_parent()


def _die_with_parent() -> None:
    """Let the kernel kill this process with its parent.

    torchrun starts ranks in sessions of their own, which a kill of the job's process group does not reach.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
