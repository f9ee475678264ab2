"""The process group of a training: joining it, and leaving it."""

import contextlib
import io
import os
import socket
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.rendezvous import rendezvous

from rdpm.pipeline.training.determinism import deterministic_operations
from rdpm.pipeline.training.engine import load_deepspeed
from rdpm.pipeline.training.launch import end_with_launcher
from rdpm.pipeline.training.ranks import Ranks, SharedError, barrier, forget_groups

_FAILED = 2  # exit code of a command that was refused
_ALL_READY, _ANSWER = timedelta(days=1), timedelta(minutes=30)


@contextlib.contextmanager
def joined_ranks(threads: int, deterministic: bool = False) -> Iterator[Ranks]:
    """For the length of the block, join the process group that torchrun or deepspeed set up, or one of a single rank.

    Ranks may come up to a day apart, because one may list images or fill its cache first. Then they answer each other
    within half an hour. Afterwards this process can join another group. A SharedError is raised on the first rank; the
    others end with exit code 2, so that it is said once. After another error in the block, this process does not wait
    for the other ranks. deterministic: see `deterministic_operations`. Raises ConnectionError when another rank is
    gone.
    """
    end_with_launcher()
    torch.set_num_threads(threads)
    linear = F.linear
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")
    with deterministic_operations(deterministic), _launcher_variables():
        device = torch.device("cpu")
        if torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        _join(device)
        ranks = Ranks(dist.get_rank(), dist.get_world_size(), device)
        together = True
        try:
            yield ranks
        except SharedError:
            if not ranks.first:
                raise SystemExit(_FAILED) from None
            raise
        except (dist.DistBackendError, dist.DistNetworkError, RuntimeError) as error:
            together = ranks.count == 1
            if together or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise
            raise ConnectionError(
                f"rank {ranks.rank} lost another rank, which has ended; see what that one said"
            ) from None
        except BaseException as error:
            together = ranks.count == 1 or isinstance(error, SystemExit)  # SIGTERM ends every rank after the same step
            raise
        finally:
            F.linear = linear  # which ZeRO-3 replaces for the whole process
            if together:
                barrier()
                load_deepspeed().comm.destroy_process_group()
                forget_groups()


def _join(device: torch.device) -> None:
    """Wait for all ranks, and make the process group that DeepSpeed uses."""
    store, rank, count = next(rendezvous("env://", timeout=_ALL_READY))
    if store.add("rdpm/ready", 1) == count:
        store.set("rdpm/all", "ready")
    store.wait(["rdpm/all"], _ALL_READY)
    cuda = device.type == "cuda"
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=dist.PrefixStore("rdpm", store),
        rank=rank,
        world_size=count,
        timeout=_ANSWER,
        device_id=device if cuda else None,
    )
    with contextlib.redirect_stdout(io.StringIO()):  # it tells every rank's reader that an operation was built
        load_deepspeed().init_distributed(dist_backend=dist.get_backend(), verbose=False)


@contextlib.contextmanager
def _launcher_variables() -> Iterator[None]:
    """Where no launcher set the variables that DeepSpeed reads, set them for a single rank.

    They must not outlast the group: a training that this process starts later would take itself for a rank.
    """
    single: dict[str, str] = {}
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        single = {
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    before = {name: os.environ.get(name) for name in single}
    os.environ.update(single)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
