"""At most one start at a time holds the lease of an output, whatever is killed, stopped, late or told a wrong time."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import pytest

from rdpm.pipeline.foundation import files, lease
from rdpm.pipeline.foundation.lease import Lease, LeaseLost, held, waiting

SHORT, BUSY = {"seconds": 0.6, "every": 0.1}, {"seconds": 1.5, "every": 0.1}  # BUSY: also where the machine is slow
HOLD = """
import json, sys, time
from rdpm.pipeline.foundation.lease import held
with held(sys.argv[1], "train-generator", seconds=float(sys.argv[2]), every=float(sys.argv[3])) as lease:
    print(lease.number, flush=True)
    for line in sys.stdin:
        try:
            lease.check()
            open(sys.argv[1], "a").write(line)
            print("published", flush=True)
        except ValueError as error:
            print(type(error).__name__, flush=True)
"""


@pytest.fixture
def out(tmp_path) -> str:
    return str(tmp_path / "out")


@pytest.fixture
def start_holder(python, repository):
    """Start another process that holds the lease of an output, and publishes a line whenever it is told to."""
    with ExitStack() as stack:

        def start(out: str, seconds: float = 60.0, every: float = 15.0) -> subprocess.Popen:
            command = [*python, "-c", HOLD, out, str(seconds), str(every)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            process = stack.enter_context(subprocess.Popen(command, cwd=repository, **pipes))
            stack.callback(process.kill)
            assert int(process.stdout.readline())
            return process

        yield start


def publish(holder: subprocess.Popen) -> str:
    holder.stdin.write("line\n")
    holder.stdin.flush()
    return holder.stdout.readline().strip()


def on_disk(out: str) -> dict[str, dict]:
    return {name: files.read_json(f"{out}.lease/{name}") for name in files.list_names(f"{out}.lease")}


def rewrite(out: str, number: int, **changes: object) -> None:
    """Another holder's file, as its machine would have written it."""
    path = f"{out}.lease/{number:08d}.json"
    files.write_json(path, {**files.read_json(path), **changes})


def leave(out: str, **changes: object) -> None:
    """A lease whose holder has left it as it is."""
    number = len(files.list_names(f"{out}.lease")) + 1
    holder = asdict(made_holder()) | {"seconds": 0.6, **changes}
    files.write_json(f"{out}.lease/{number:08d}.json", holder)


def made_holder() -> lease.Holder:
    now = time.time()
    return lease.Holder("o", "tokenize", "node7", "another machine", 4711, "1", now, now + 60, 5.0, 60.0)


def test_numbers_grow_and_only_the_last_is_kept(anywhere):
    out = f"{anywhere}/out"
    for number in (1, 2, 3):
        with held(out, "sample") as mine:
            assert mine.number == number
            mine.check()
            assert list(on_disk(out)) == [f"{number:08d}.json"]
            assert not on_disk(out)[f"{number:08d}.json"]["released"]
        assert on_disk(out)[f"{number:08d}.json"]["released"]
        with pytest.raises(LeaseLost):
            mine.check()


def test_a_second_start_is_refused_with_who_holds_it_since_when_until_when_and_how_to_wait(anywhere):
    out = f"{anywhere}/out"
    with held(out, "train-generator") as mine:
        with pytest.raises(ValueError) as refused, held(out, "train-generator"):
            pass
        holder = on_disk(out)["00000001.json"]
        said = str(refused.value)
        for part in (
            out,
            "train-generator",
            holder["host"],
            f"process {os.getpid()}",
            "since 20",
            "until 20",
            "--wait",
        ):
            assert part in said
        mine.check()
    with held(f"{anywhere}/other", "train-generator"), held(out, "train-generator"):
        pass


def test_a_start_that_waits_gets_the_lease_when_it_is_released_and_gives_up_when_its_time_is_over(anywhere, capsys):
    out = f"{anywhere}/out"
    with ExitStack() as first:
        first.enter_context(held(out, "sample"))
        with pytest.raises(ValueError, match="is being written by sample"), waiting(0.3), held(out, "sample", **SHORT):
            pass
        timer = threading.Timer(0.3, first.close)
        timer.start()
        with waiting(float("inf")), held(out, "sample", **SHORT) as second:
            assert second.number == 2
        timer.join()
    assert "waiting for it" in capsys.readouterr().out


def test_a_lease_that_a_full_disk_did_not_let_mark_as_released_is_free_for_the_same_process(out, monkeypatch):
    with held(out, "sample"):
        monkeypatch.setattr(files, "write_json", lambda *_: (_ for _ in ()).throw(OSError("the disk is full")))
    monkeypatch.undo()
    with held(out, "sample") as again:
        assert again.number == 2


@pytest.mark.slow
def test_a_holder_that_lives_keeps_its_lease_beyond_a_period(out):
    with held(out, "sample", **BUSY) as mine:
        time.sleep(2.0)
        mine.check()
        with pytest.raises(ValueError, match="is being written"), held(out, "sample", **SHORT):
            pass
        mine.check()


def test_a_killed_holder_on_this_machine_loses_the_lease_at_once(out, start_holder):
    holder = start_holder(out)
    with pytest.raises(ValueError, match=rf"train-generator on .*, process {holder.pid}, since"), held(out, "sample"):
        pass
    holder.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # dead, but nobody has asked for its exit code
    began = time.monotonic()
    with held(out, "sample") as mine:
        assert mine.number == 2
    assert time.monotonic() - began < 5


def test_a_pid_that_another_process_has_now_is_no_holder(out):
    with held(out, "sample"):
        rewrite(out, 1, process="1")
        with held(out, "sample") as second:
            assert second.number == 2


def test_a_holder_stopped_beyond_its_period_publishes_nothing_and_touches_nothing_of_the_next(out, start_holder):
    stopped = start_holder(out, *SHORT.values())
    assert publish(stopped) == "published"
    stopped.send_signal(signal.SIGSTOP)
    with waiting(30), held(out, "sample") as mine:
        assert mine.number == 2
        stopped.send_signal(signal.SIGCONT)
        assert [publish(stopped) for _ in range(2)] == ["LeaseLost", "LeaseLost"]
        stopped.stdin.close()
        assert stopped.wait(10) == 0
        mine.check()
        assert not on_disk(out)["00000002.json"]["released"]
    assert Path(out).read_text() == "line\n"


def test_a_holder_stopped_beyond_its_period_publishes_nothing_even_if_nobody_came(out, start_holder):
    stopped = start_holder(out, *SHORT.values())
    stopped.send_signal(signal.SIGSTOP)
    time.sleep(1.0)
    stopped.send_signal(signal.SIGCONT)
    assert publish(stopped) == "LeaseLost"
    assert not Path(out).exists()


def test_a_holder_whose_storage_answers_too_late_has_lost_the_lease(out, monkeypatch):
    """Others may have looked at the old file before the new one was there."""
    write = files.write_json

    def slow(url: str, value: object) -> None:
        time.sleep(1.0)
        write(url, value)

    with held(out, "sample", **SHORT) as mine:
        monkeypatch.setattr(files, "write_json", slow)
        time.sleep(1.5)
        with pytest.raises(LeaseLost, match=r"cut off from it, for more than 0\.6 s"):
            mine.check()
        assert mine.lost


@pytest.mark.slow
def test_a_holder_survives_a_storage_that_fails_for_less_than_a_period(out, monkeypatch):
    with held(out, "sample", **BUSY) as mine, monkeypatch.context() as broken:
        broken.setattr(files, "write_json", lambda *_: (_ for _ in ()).throw(OSError("503")))
        time.sleep(0.6)
        broken.undo()
        time.sleep(1.2)
        mine.check()
        assert not mine.lost


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
        with pytest.raises(ValueError, match="tokenize on node7, process 4711"), held(out, "sample", **SHORT):
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


def test_a_start_whose_reply_got_lost_finds_that_it_has_the_lease(out, monkeypatch):
    create = files.create_bytes
    monkeypatch.setattr(files, "create_bytes", lambda url, data: create(url, data) and False)
    with held(out, "sample") as mine:
        assert mine.number == 1


def test_a_file_that_is_no_lease_is_refused_by_name(out):
    for content in (b"", b"[]", b'{"owner": "a"}', json.dumps(asdict(made_holder()) | {"pid": "x"}).encode()):
        files.write_bytes(f"{out}.lease/00000001.json", content)
        with (
            pytest.raises(ValueError, match=r"out\.lease/00000001\.json is no lease; .* delete it"),
            held(out, "sample"),
        ):
            pass


@pytest.mark.slow
def test_a_lent_lease_is_used_and_not_released_by_the_borrower(out):
    with held(out, "sample", **BUSY) as mine:
        with mine.lent():
            with held(out, "sample") as borrowed:
                assert borrowed.number == mine.number
                borrowed.check()
            with held(f"{out}-2", "sample") as own:  # only of this output
                assert own.number == 1
            time.sleep(2.0)
            borrowed.check()
        mine.check()
        with pytest.raises(ValueError, match="is being written"), held(out, "sample"):
            pass
    with pytest.raises(LeaseLost):
        borrowed.check()


def test_a_borrower_notices_that_its_lender_no_longer_renews(out, start_holder, monkeypatch):
    lender = start_holder(out, *SHORT.values())
    monkeypatch.setenv("RDPM_LEASE", f"1 {out}")
    with held(out, "sample") as borrowed:
        borrowed.check()
        lender.send_signal(signal.SIGSTOP)
        time.sleep(1.0)
        with pytest.raises(LeaseLost):
            borrowed.check()


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


def test_a_lease_is_no_part_of_an_output(out):
    assert isinstance(held(out, "sample").__enter__(), Lease)
    assert not files.exists(out)
    assert [path.name for path in Path(out).parent.iterdir()] == ["out.lease"]
