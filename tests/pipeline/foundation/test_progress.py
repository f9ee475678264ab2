"""Progress on a real terminal, in a real pipe, in a real kernel of a notebook, and in the log of a long job."""

import itertools
import os
import pty
import re
import subprocess
import termios

import pytest

from rdpm.pipeline.foundation import progress
from rdpm.pipeline.foundation.progress import ProgressLine, duration

JOB = """
import time
from rdpm.pipeline.foundation.progress import ProgressLine
with ProgressLine("copy", 40, "files", done=10) as line:
    for number in range(11, 41):
        time.sleep(0.02)
        line.update(number, {"loss": 0.25})
print("the end")
"""


def test_in_a_pipe_it_is_plain_lines(python, repository):
    done = subprocess.run([*python, "-c", JOB], cwd=repository, capture_output=True, text=True, check=True)
    line, end = done.stdout.splitlines()
    assert re.fullmatch(r"copy: 40/40 files  [\d.]+ files/s  took \d+ s  loss 0\.25", line)
    assert (end, done.stderr) == ("the end", "")


@pytest.mark.parametrize(("columns", "bar"), [(120, True), (46, False)])
def test_on_a_terminal_it_is_one_line_that_moves(python, repository, columns, bar):
    """Many states, and when it has ended the terminal has one line of it, however narrow the terminal is."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(repository)
        termios.tcsetwinsize(0, (24, columns))
        os.execve(python[0], [*python, "-c", JOB], {**os.environ, "TERM": "xterm", "COLUMNS": str(columns)})
    written = b""
    while part := _read(terminal):
        written += part
    os.waitpid(process, 0)
    os.close(terminal)
    states = written.decode().split("\x1b[2K")
    text = [re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", state) for state in states]
    assert len({state.split("/40")[0] for state in text if "/40" in state}) > 2
    assert max(len(line.strip("\r")) for state in text for line in state.split("\n")) <= columns
    assert all("\n" not in state for state in text[:-1])
    last = text[-1].split("\n")
    assert [line.strip() for line in last[1:]] == ["the end", ""]
    assert re.search(r"copy 40/40 .*files/s  took \d+ s", last[0])
    assert ("loss 0.25" in last[0]) == bar


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # so Linux says that the last process has closed it
        return b""


def test_in_a_notebook_it_is_one_display_that_is_updated(repository, monkeypatch):
    """In the kernel that Jupyter would start."""
    from jupyter_client.manager import start_new_kernel

    monkeypatch.chdir(repository)
    manager, client = start_new_kernel(extra_arguments=["--HistoryManager.enabled=False"])
    try:
        replies = []
        reply = client.execute_interactive(JOB, timeout=60, output_hook=replies.append)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert reply["content"]["status"] == "ok", reply["content"]
    printed = [r["content"]["text"] for r in replies if r["msg_type"] == "stream"]
    assert "".join(printed) == "the end\n"
    (shown,) = [r["content"] for r in replies if r["msg_type"] == "display_data"]
    updates = [r["content"] for r in replies if r["msg_type"] == "update_display_data"]
    assert {u["transient"]["display_id"] for u in updates} == {shown["transient"]["display_id"]}
    texts = [content["data"]["text/plain"] for content in (shown, *updates)]
    assert texts[0].startswith("copy  10/40  ")
    assert 3 <= len(texts) < 20
    assert re.fullmatch(r"copy  40/40  █{30}  [\d.]+ files/s  took \d+ s  loss 0\.25", texts[-1])


def test_the_lines_of_a_log_come_ever_more_rarely(monkeypatch, capsys):
    """A job of ten hours, one image per second."""
    now = 0
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(now))
    with ProgressLine("encode", 36_000, "images") as line:
        for now in range(1, 36_001):
            line.update(now)
        line.update(36_000)
    lines = capsys.readouterr().out.splitlines()
    at = [int(re.match(r"encode: (\d+)/36000 images  1\.0 images/s  ", line).group(1)) for line in lines]
    gaps = [later - earlier for earlier, later in itertools.pairwise(at[:-1])]
    assert at[0] == 10
    assert gaps == sorted(gaps)
    assert max(gaps) <= 600
    assert 60 < len(lines) < 90
    assert lines[0].endswith("  10 h 00 min left")
    assert lines[-1] == "encode: 36000/36000 images  1.0 images/s  took 10 h 00 min"
    assert at[-2] != 36_000


def test_what_is_quiet_shows_nothing(capsys):
    with ProgressLine("copy", 2, "files", quiet=True) as line:
        line.update(2)
    assert capsys.readouterr().out == ""
    assert line.done == 2


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.2, "0 s"), (99, "99 s"), (100, "2 min"), (3540, "59 min"), (3599, "1 h 00 min"), (5400, "1 h 30 min"),
        (47 * 3600, "47 h 00 min"), (50 * 3600, "2 d 2 h"),
    ],
)  # fmt: skip
def test_lengths_of_time_have_two_units_at_most(seconds, shown):
    assert duration(seconds) == shown


def test_long_units_are_shown_in_part(monkeypatch, capsys):
    times = iter([0.0, *[3600.0] * 20])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    with ProgressLine("scaling", 9, "trainings", done=2) as line:
        line.update(3.75)
    assert capsys.readouterr().out == "scaling: 3.8/9 trainings  1.8 trainings/h  3 h 00 min left\n"


def test_slow_work_has_a_rate_per_hour(monkeypatch, capsys):
    times = iter([0.0, *[7200.0] * 20])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    with ProgressLine("compare", 6, "trainings") as line:
        line.update(3)
    assert capsys.readouterr().out == "compare: 3/6 trainings  1.5 trainings/h  2 h 00 min left\n"
