"""Run what only a GPU can show, part by part, and write the tables of docs/benchmarks.md.

    python -m benchmarks.gpu                       # what has not run yet on this device, of this commit
    python -m benchmarks.gpu --list                # the parts: their names, their limits, what they lack
    python -m benchmarks.gpu tests train/d12       # only parts whose names begin so, or match such a pattern
    python -m benchmarks.gpu --part 2/5            # every 5th part from the 2nd, for five GPUs at once
    python -m benchmarks.gpu --minutes 9           # begin no part that could take longer than is left of nine minutes

Each part is a process that is killed at its limit, ten minutes at most. Its result is one file in OUT, so the same
command goes on where it was stopped. A part that needs a package that is not installed is left out and named. Exit
code 0: every part that was asked for has run and passed. 1: not all have. 2: there is no CUDA device.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.parts import PARTS, Part, chosen
from benchmarks.gpu.running import ROOT, Machine, finished, machine, path_of, read, run
from benchmarks.gpu.tables import write_tables


def passed(out: Path, part: Part) -> bool:
    """Whether the result of a part is a success."""
    result = read(out, part)
    return result is not None and result["exit_code"] == 0 and not result["timed_out"]


def run_parts(parts: Sequence[Part], here: Machine, out: Path, again: bool, minutes: float | None) -> int:
    """Run the parts in turn, except those that are finished or lack a package. Returns the exit code."""
    began = time.monotonic()
    able = [part for part in parts if not part.missing]
    for part in parts:
        if part.missing:
            print(f"left out  {part.name}: {', '.join(part.missing)} is not installed", flush=True)
    late = []
    for number, part in enumerate(able, start=1):
        if not again and finished(out, part, here):
            continue
        if minutes is not None and time.monotonic() - began + part.seconds > 60 * minutes:
            late.append(part)
            continue
        print(f"{number}/{len(able)}  {part.name}", flush=True)
        result = run(part, here, out)
        if not passed(out, part):
            why = "was stopped" if result["timed_out"] else f"failed with exit code {result['exit_code']}"
            print(f"  {why} after {result['seconds']} s; see {path_of(out, part)}", flush=True)
    bad = [part.name for part in able if part not in late and not passed(out, part)]
    if bad:
        print(f"not passed: {'; '.join(bad)}")
    if late:
        print(f"{len(late)} parts did not fit the {minutes:g} minutes; start again to go on")
    return 1 if bad or late else 0


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="patterns of names")
    parser.add_argument("--part", metavar="N/M")
    parser.add_argument("--minutes", type=float, help="begin nothing that could end after so many")
    parser.add_argument("--again", action="store_true", help="run finished parts too")
    parser.add_argument("--list", action="store_true", help="show the parts")
    parser.add_argument("--tables", action="store_true", help="only write the tables")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu", help="folder of the results")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks.md", help="page with the tables")
    parser.add_argument("--commit", help="what to call the sources, where git cannot say")
    options = parser.parse_args()
    try:
        parts = chosen(PARTS, options.names, options.part)
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        for part in parts:
            lacking = f"; {', '.join(part.missing)} is not installed" if part.missing else ""
            print(f"{part.name}: at most {part.seconds} s{lacking}")
        return 0
    code = 0
    if not options.tables:
        here = machine(options.commit)
        if here.device is None:
            print("there is no CUDA device, and every part needs one; --list shows the parts", file=sys.stderr)
            return 2
        print(f"{here.device}, driver {here.driver}, torch {here.torch}, CUDA {here.cuda}, commit {here.commit}")
        code = run_parts(parts, here, options.out, options.again, options.minutes)
    write_tables(options.page, PARTS, options.out)
    print(f"wrote the tables of {options.page}")
    return code


if __name__ == "__main__":
    sys.exit(main())
