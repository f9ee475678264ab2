"""Training on two hosts that only a cable joins: one of them is killed in mid-training, and started again."""

import random
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.namespaces import Host, two_hosts
from tests.faults.processes import Family, wait_until
from tests.pipeline.training.trainings import arguments, log_lines

STEPS = 40
OPTIONS = [f"steps={STEPS}", "checkpoint_every=1", "ranks=2", "micro_batch=4", "engine.zero_stage=2"]


class Pair:
    """Two hosts, each with a torchrun of one rank."""

    def __init__(self, hosts: tuple[Host, Host], inputs: Path, repository: Path, logs: Path) -> None:
        self.hosts, self.inputs, self.repository = hosts, inputs, repository
        self.families = [Family(logs / f"host-{number}.log") for number in (1, 2)]

    def start(self, number: int, out: Path, restarts: int):
        """Start torchrun on one of the hosts, with the command of docs/cluster.md."""
        host = self.hosts[number]
        torchrun = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
            "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{self.hosts[0].address}:29500", "--rdzv-id", out.name,
            "--rdzv-conf", f"is_host={not number}", "--local-addr", host.address, "--max-restarts", str(restarts),
        ]  # fmt: skip
        training = ["-m", "rdpm", "train-generator", *arguments("generator", self.inputs, out, *OPTIONS)]
        environment = host.environment | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # see docs/cluster.md
        return self.families[number].start(host.command(*torchrun, *training), environment, self.repository)

    def said(self) -> str:
        return "\n".join(family.printed() for family in self.families)


@pytest.fixture
def pair(inputs, repository, tmp_path) -> Iterator[Pair]:
    with ExitStack() as stack:
        made = Pair(stack.enter_context(two_hosts()), inputs, repository, tmp_path)
        for family in made.families:
            stack.callback(family.close)
        yield made


def result(out: Path) -> dict:
    """What must not depend on kills."""
    return {name: (out / name).read_bytes() for name in ("model.safetensors", "card.json")} | {"log": log_lines(out)}


def steps(out: Path) -> int:
    log = out / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


@pytest.mark.long
def test_a_host_that_is_killed_and_started_again_changes_nothing(pair, tmp_path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    jobs = [pair.start(number, straight, 0) for number in (0, 1)]
    assert [job.wait(200) for job in jobs] == [0, 0], pair.said()
    draw = random.Random(0)
    jobs = [pair.start(number, killed, 2) for number in (0, 1)]
    wait_until(lambda: steps(killed) >= draw.randint(5, 15), 120, "steps", 0.02)
    assert pair.families[1].send(signal.SIGKILL) >= 2  # torchrun and its rank; the first host waits for it to return
    before = steps(killed)
    assert before < STEPS
    jobs[1] = pair.start(1, killed, 2)
    wait_until(lambda: steps(killed) >= before + 8, 240, f"more steps: {pair.said()}", 0.02)
    for family in pair.families:  # now both, also the one where they meet
        family.send(signal.SIGKILL)
    jobs = [pair.start(number, killed, 0) for number in (0, 1)]
    assert [job.wait(200) for job in jobs] == [0, 0], pair.said()
    assert result(killed) == result(straight)
