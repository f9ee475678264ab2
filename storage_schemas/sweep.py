"""sweep.json: the rows of a sweep's table."""

from dataclasses import dataclass
from typing import Any

SWEEP = "sweep.json"


@dataclass(frozen=True)
class SweepRow:
    """One set of samples and what it is worth."""

    name: str
    """Name of the row."""
    generator: str
    """Path or URL of the generator."""
    sampler: dict[str, Any]
    """Settings of the sampler."""
    metrics: dict[str, float]
    """Metrics by name."""
    pareto: tuple[str, ...] = ()
    """Pairs of metrics, "x against y", at which no other row beats this one."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "SweepRow":
        """From sweep.json of any release; at first, metrics were called measures."""
        metrics = data.get("metrics") or data["measures"]
        return cls(data["name"], data["generator"], data["sampler"], metrics, tuple(data["pareto"]))
