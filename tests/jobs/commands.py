"""Commands of `rdpm` that ran to their end, and what a refusal is."""

import os
from dataclasses import dataclass

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


# Commands whose imports take seconds run in forks of one process that has them loaded.
LOADED = """
import importlib, json, os, runpy, sys, traceback
for name in ("describe", "sample", "tokenize_images", "train_generator", "train_tokenizer", "verify"):
    importlib.import_module(f"rdpm.jobs.{name}")
for line in sys.stdin:
    arguments, folder = json.loads(line)
    child = os.fork()
    if not child:
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(f"{folder}/{name}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
        sys.argv = ["rdpm", *arguments]
        try:
            runpy.run_module("rdpm", run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            code = ended.code
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        os._exit(code)  # taking down what is loaded would cost a second
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """A command that ran to its end."""

    code: int
    out: str
    err: str


def assert_refused(ended: Ended, command: str, *named: str) -> None:
    """One sentence from us on stderr that names the offending values, an exit code, and no traceback."""
    assert ended.code == 2, ended
    ours = [line for line in ended.err.splitlines() if line.startswith("rdpm")]
    assert len(ours) == 1, ended.err
    assert ours[0].startswith(f"rdpm {command}: ")
    assert "Traceback" not in ended.err + ended.out
    for value in named:
        assert value in ours[0]
