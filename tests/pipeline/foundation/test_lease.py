"""At most one start at a time holds the lease of an output, whatever is killed, stopped or late on this machine."""

import os
import signal
import subprocess
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.lease import Lease, LeaseLost, held, waiting
from tests.pipeline.foundation.lease_files import BUSY, SHORT, on_disk

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


def test_a_start_whose_reply_got_lost_finds_that_it_has_the_lease(out, monkeypatch):
    create = files.create_bytes
    monkeypatch.setattr(files, "create_bytes", lambda url, data: create(url, data) and False)
    with held(out, "sample") as mine:
        assert mine.number == 1


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


def test_a_lease_is_no_part_of_an_output(out):
    assert isinstance(held(out, "sample").__enter__(), Lease)
    assert not files.exists(out)
    assert [path.name for path in Path(out).parent.iterdir()] == ["out.lease"]
