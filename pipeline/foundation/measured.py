"""Reading what `rdpm evaluate` or `rdpm diagnose` has measured."""

from typing import Any

from rdpm.pipeline.foundation import files


def read_measured(path: str, job: str) -> dict[str, Any]:
    """The JSON object that `rdpm JOB` wrote, with its protocol. Raises ValueError for anything else."""
    if not files.exists(path):
        raise ValueError(f"{path!r} does not exist; run rdpm {job} first")
    measured = files.read_json(path)
    if not isinstance(measured, dict) or not isinstance(measured.get("protocol"), dict):
        raise ValueError(f"{path!r} was not written by rdpm {job}; give a file that it wrote")
    return measured
