"""Leases that others hold or left: on other machines, in dead processes, and many starts at once."""

import json
import multiprocessing
import os
import random
import threading
import time
from dataclasses import asdict

import pytest

from rdpm.pipeline.foundation import files, lease
from rdpm.pipeline.foundation.lease import held
from tests.pipeline.foundation.lease_files import SHORT, leave, made_holder, on_disk, rewrite


@pytest.fixture
def out(tmp_path) -> str:
    return str(tmp_path / "out")


def test_a_pid_that_another_process_has_now_is_no_holder(out):
    with held(out, "sample"):
        rewrite(out, 1, process="1")
        with held(out, "sample") as second:
            assert second.number == 2


@pytest.mark.parametrize("skew", [-3e8, 3e8])
@pytest.mark.parametrize("renews", [True, False])
def test_no_clock_of_another_machine_decides(anywhere, skew, renews):
    """A holder elsewhere keeps its lease as long as it renews, and loses it after a period, whatever its clocks say."""
    out = f"{anywhere}/out"
    now = time.time() + skew
    leave(out, since=now, until=now + 60, renewed=1e9 + skew)
    if renews:
        timer = threading.Timer(0.2, rewrite, [out, 1], {"renewed": 2e9 + skew})
        timer.start()
        with (
            pytest.raises(ValueError, match="tokenize on node7, process 4711"),
            held(out, "sample", seconds=6.0, every=0.1),
        ):
            pass
        timer.join()
        return
    began = time.monotonic()
    with held(out, "sample", **SHORT) as mine:
        assert mine.number == 2
    assert time.monotonic() - began > 0.6


def test_another_machines_released_lease_is_free_at_once(out):
    leave(out, seconds=60.0, released=True)
    with held(out, "sample") as mine:
        assert mine.number == 2


def test_a_former_holder_that_still_writes_its_own_file_changes_nothing(out):
    with held(out, "sample"):
        rewrite(out, 1, process="1")
        with held(out, "sample") as second:
            leave_again = asdict(made_holder())
            files.write_json(f"{out}.lease/00000001.json", leave_again)
            second.check()
    with held(out, "sample") as third:
        assert third.number == 3
        assert list(on_disk(out)) == ["00000003.json"]


def test_a_start_that_was_stopped_while_numbers_came_and_went_takes_none_of_them(out):
    for _ in range(3):
        with held(out, "sample"):
            pass
    with held(out, "sample") as mine:
        assert lease._claim(out, 2, "sample", 60.0, 15.0) is None
        assert list(on_disk(out)) == ["00000004.json"]
        mine.check()


def test_a_file_that_is_no_lease_is_refused_by_name(out):
    for content in (b"", b"[]", b'{"owner": "a"}', json.dumps(asdict(made_holder()) | {"pid": "x"}).encode()):
        files.write_bytes(f"{out}.lease/00000001.json", content)
        with (
            pytest.raises(ValueError, match=r"out\.lease/00000001\.json is no lease; .* delete it"),
            held(out, "sample"),
        ):
            pass


CONTENDERS = 8


def contend(number: int, rounds: int, root: str, barrier, wins) -> None:
    """In every round, all start at once; who gets the lease keeps it until all others have been refused."""
    for turn in range(rounds):
        out = f"{root}/out-{turn % 5}"  # five outputs with a history
        barrier.wait(60)
        try:
            with held(out, f"contender {number}", seconds=2.4, every=0.3) as mine:
                wins[turn * CONTENDERS + number] = mine.number
                barrier.wait(60)
                mine.check()
        except ValueError:
            barrier.wait(60)
        barrier.wait(60)


def prepare_round(chance: random.Random, out: str) -> None:
    """What the contenders find: nothing, a released lease, one of a dead process, or one that has run out here."""
    kind = chance.choice(["as it is", "dead", "gone elsewhere", "ran out"])
    number = max((int(name[:8]) for name in files.list_names(f"{out}.lease")), default=0)
    if kind == "as it is" or not number:
        return
    changes = {
        "dead": {"process": "1", "released": False},
        "gone elsewhere": {"machine": "another", "seconds": 0.3, "released": False},
        "ran out": {"pid": os.getpid(), "process": lease.started(os.getpid()), "renewed": 0.0, "released": False},
    }
    rewrite(out, number, **changes[kind])


@pytest.mark.parametrize(
    "rounds", [pytest.param(20, marks=pytest.mark.slow), pytest.param(200, marks=pytest.mark.long)]
)
def test_of_eight_that_start_at_once_exactly_one_gets_the_lease(tmp_path, rounds):
    context, chance, root = multiprocessing.get_context("fork"), random.Random(12), str(tmp_path)
    barrier, wins = context.Barrier(CONTENDERS + 1), context.Array("i", CONTENDERS * rounds)
    contenders = [
        context.Process(target=contend, args=(number, rounds, root, barrier, wins)) for number in range(CONTENDERS)
    ]
    for contender in contenders:
        contender.start()
    for turn in range(rounds):
        prepare_round(chance, f"{root}/out-{turn % 5}")
        for _ in range(3):
            barrier.wait(60)
    for contender in contenders:
        contender.join(60)
        assert contender.exitcode == 0
    numbers = [[n for n in wins[turn * CONTENDERS : (turn + 1) * CONTENDERS] if n] for turn in range(rounds)]
    assert [len(winners) for winners in numbers] == [1] * rounds
    for first in range(5):
        of_one_output = [number for (number,) in numbers[first::5]]
        assert of_one_output == sorted(set(of_one_output))
