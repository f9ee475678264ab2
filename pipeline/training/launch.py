"""Start the ranks of a training on this machine, start fewer of them when one dies, and end them with it."""

import os
import signal
import sys
import tempfile
import uuid
from dataclasses import replace

import torch

from rdpm.pipeline.foundation.config import save_config
from rdpm.pipeline.foundation.lease import Lease
from rdpm.pipeline.foundation.processes import end_with_parent
from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.training.run_config import RunConfig

_LAUNCHER = "RDPM_LAUNCHER"  # process that started the ranks
_DEVICES = "CUDA_VISIBLE_DEVICES"
_REFUSED = 2  # exit code of a rank that gave a reason, which would be the same again
_STOPPED = 128 + signal.SIGTERM


class RankDied(ValueError):
    """A rank ended although nobody asked it to, and not with a refusal."""

    def __init__(self, rank: int, ranks: int, code: int) -> None:
        super().__init__(f"training stopped: rank {rank} of {ranks} ended with exit code {code}; see above")
        self.rank = rank


def under_launcher() -> bool:
    """Whether torchrun, deepspeed or a scheduler started this process as a rank."""
    return "RANK" in os.environ


def first_rank() -> bool:
    """Whether this process is the first rank, or not one of several."""
    return os.environ.get("RANK", "0") == "0"


def launch(job: str, config: RunConfig, lease: Lease) -> None:
    """Run a job in one process per rank, as torchrun does, and wait. The processes get the config as a file.

    When a rank dies, all end within 30 s, and the job continues from its last checkpoint on as many of the other ranks
    as divide the batch; at most config.max_restarts times. A GPU of a dead rank is not used again.
    lease: of the job's output; this process goes on holding it for the ranks. SIGTERM is passed on to them. Raises
    ValueError naming the rank that failed.
    """
    given, devices, restarts = os.environ.get(_DEVICES), _devices(), 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ[_LAUNCHER] = str(os.getpid())
    try:
        with lease.lent():
            while True:
                try:
                    _run_ranks(job, config)
                    return
                except RankDied as died:
                    fewer = _fewer_ranks(config)
                    if restarts == config.max_restarts or fewer is None:
                        raise
                    lease.check()
                    restarts += 1
                    say(
                        f"{job}: rank {died.rank} of {config.ranks} died; starting again on {fewer.ranks} ranks, from "
                        f"the last checkpoint (restart {restarts} of at most {config.max_restarts})"
                    )
                    config = fewer
                    if devices:
                        del devices[died.rank]
                        os.environ[_DEVICES] = ",".join(devices)
    finally:
        del os.environ[_LAUNCHER]
        if given is not None:
            os.environ[_DEVICES] = given
        else:
            os.environ.pop(_DEVICES, None)


def _run_ranks(job: str, config: RunConfig) -> None:
    """Start all ranks and wait for them. Raises RankDied, and ValueError for a rank that refused."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    run = uuid.uuid4().hex  # or torch makes one, with a warning
    elastic = LaunchConfig(
        1, 1, config.ranks, run_id=run, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0
    )
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "config.yaml")
        save_config(path, job, config)
        try:
            elastic_launch(elastic, sys.executable)("-u", "-m", "rdpm", job, path)
        except SignalException as stopped:
            sys.exit(128 + stopped.sigval)
        except ChildFailedError as failed:
            codes = {rank: failure.exitcode for rank, failure in failed.failures.items()}
            if _STOPPED in codes.values():  # a rank was told to stop, and all have saved a checkpoint
                sys.exit(_STOPPED)
            later = {_REFUSED: 1, -signal.SIGTERM: 2}  # the others say that they lost the dead one, or we end them
            rank = min(codes, key=lambda rank: (later.get(codes[rank], 0), codes[rank] > 0, rank))
            died = RankDied(rank, config.ranks, codes[rank])
            raise died if codes[rank] != _REFUSED else ValueError(str(died)) from None


def _fewer_ranks(config: RunConfig) -> RunConfig | None:
    """The config with the most ranks that the batch allows below its own; None for a single rank."""
    for ranks in range(config.ranks - 1, 0, -1):
        try:
            return replace(config, ranks=ranks)
        except ValueError:
            continue
    return None


def _devices() -> list[str]:
    """The GPUs that ranks 0, 1, … use, as CUDA_VISIBLE_DEVICES names them; empty without GPUs."""
    count = torch.cuda.device_count()
    given = os.environ.get(_DEVICES)
    return given.split(",")[:count] if given else [str(number) for number in range(count)]


def end_with_launcher() -> None:
    """On a rank that `launch` started: end when the launcher is killed.

    torchrun starts ranks in sessions of their own, which a kill of the job's session does not reach.
    """
    if launcher := os.environ.get(_LAUNCHER):
        end_with_parent(int(launcher))
