"""Starting the ranks of a training job, and ending them with it."""

import ctypes
import os
import signal
import subprocess
import sys

_STARTED_HERE = "RDPM_STARTED_RANKS"
_PR_SET_PDEATHSIG = 1


def under_launcher() -> bool:
    """Whether torchrun, deepspeed or a scheduler already started this process as a rank."""
    return "RANK" in os.environ


def launch(ranks: int, arguments: list[str]) -> None:
    """Run `rdpm` with these arguments once a rank under torchrun, and wait. Raises ValueError when a rank fails."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    settings = {_STARTED_HERE: "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    started = subprocess.Popen(
        [*command, "-m", "jobs.cli", *arguments], env={**os.environ, **settings}, preexec_fn=_die_with_parent
    )
    stopping: list[int] = []

    def pass_on(number: int, _: object) -> None:
        stopping.append(number)
        started.send_signal(number)  # torchrun hands it to its ranks, which save and end

    former = signal.signal(signal.SIGTERM, pass_on)
    code = started.wait()
    signal.signal(signal.SIGTERM, former)
    if stopping:
        sys.exit(128 + stopping[0])
    if code:
        raise ValueError(f"training stopped: a rank of {ranks} failed with exit code {code}; see above")


def end_with_launcher() -> None:
    """On a rank that `launch` started: end when the launcher is killed, instead of training on unseen."""
    if _STARTED_HERE in os.environ:
        _die_with_parent()


def _die_with_parent() -> None:
    """torchrun starts its ranks in sessions of their own, which a kill of the job's process group does not reach."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
