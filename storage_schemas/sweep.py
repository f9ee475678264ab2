"""sweep.json: the rows of a sweep's table."""

from dataclasses import dataclass, replace
from typing import Any

from rdpm.storage_schemas.parsing import parse
from rdpm.storage_schemas.samples import current_sampler

SWEEP = "sweep.json"


@dataclass(frozen=True)
class SweepRow:
    """One set of samples and its metrics."""

    name: str
    """Name of the row."""
    generator: str
    """Path or URL of the generator."""
    sampler: dict[str, Any]
    """Settings of the sampler."""
    metrics: dict[str, float]
    """Metrics by name."""
    pareto: tuple[str, ...] = ()
    """Pairs of metrics, "x against y", in which no other row is better in both."""

    @classmethod
    def from_json(cls, data: Any) -> "SweepRow":
        """A row of sweep.json of any release. Raises ValueError.

        In the first release metrics were called measures, and the settings of the sampler had their first version.
        """
        if isinstance(data, dict) and "measures" in data:
            data = {**data, "metrics": data["measures"]}
            del data["measures"]
        row = parse(cls, data, "the row of the sweep")
        return replace(row, sampler=current_sampler(row.sampler))
