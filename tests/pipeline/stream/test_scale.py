"""The cost of starting a stream over many rows."""

import functools
import json
import math
import os
import subprocess
from pathlib import Path

import pytest


@pytest.mark.long
def test_start_and_memory_are_flat_from_a_million_rows_to_a_billion(tmp_path, repository: Path, python):
    """10^9 rows are 244,141 shards, each with its digest in the manifest; the window is 2 shards."""
    command = [*python, str(Path(__file__).with_name("virtual_store.py"))]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    call = functools.partial(subprocess.run, env=environment, check=True, capture_output=True, text=True, timeout=150)
    for rows in (10**6, 10**9):
        folder = str(tmp_path / f"{math.log10(rows):.0f}")
        call([*command, "publish", str(rows), folder])
        found = json.loads(call([*command, "measure", folder]).stdout)
        assert found["shards_read"] <= 3 * 2  # the current window, the next and the one before
        assert found["grown_bytes"] < 2**30
