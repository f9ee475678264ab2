"""Files of leases as other holders leave them, and periods short enough for tests."""

import time
from dataclasses import asdict

from rdpm.pipeline.foundation import files, lease

SHORT, BUSY = {"seconds": 0.6, "every": 0.1}, {"seconds": 1.5, "every": 0.1}  # BUSY: also where the machine is slow


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
