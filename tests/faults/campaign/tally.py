"""What a campaign has thrown, what came of it, and what is still to be thrown."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

NETWORK = ("throttle", "conflict", "reset", "lost reply", "cut reply")
KILLS = ("worker killed", "driver killed", "node killed", "rank killed", "training killed", "writer killed")
OTHERS = ("worker stopped", "disk full", "disk read-only", "torn object", "second start", "gradient not finite")


@dataclass
class Tally:
    """Counts by kind. `goals` is how many of each kind to throw at least."""

    seed: int
    """Seed of every draw of the campaign."""
    goals: dict[str, int]
    """Kind -> faults to throw."""
    thrown: Counter[str] = field(default_factory=Counter)
    """Kind -> faults thrown."""
    refusals: Counter[str] = field(default_factory=Counter)
    """Kind or part -> starts that ended in a sentence that names the cause; a later start ended in the same bytes."""
    compared: int = 0
    """Outputs that were compared with those of an undisturbed run."""
    lost: list[str] = field(default_factory=list)
    """Outputs that differ."""
    seconds: Counter[str] = field(default_factory=Counter)
    """Part of the campaign -> seconds."""

    def wants(self, *kinds: str) -> bool:
        """Whether faults of any of these kinds are still to be thrown."""
        return any(self.thrown[kind] < self.goals.get(kind, 0) for kind in kinds)

    def compare(self, what: str, found: object, expected: object) -> None:
        """Count an output, and note it as lost if it is not what an undisturbed run makes."""
        self.compared += 1
        if found != expected:
            self.lost.append(f"{what}: {_difference(found, expected)}")

    def table(self) -> str:
        """The result as a Markdown table."""
        kinds = [kind for kind in (*NETWORK, *KILLS, *OTHERS) if self.thrown[kind]]
        rows = [f"| {kind} | {self.thrown[kind]} |" for kind in kinds]
        refusals = ", ".join(f"{what} {count}" for what, count in self.refusals.items()) or "none"
        kills = sum(self.thrown[kind] for kind in KILLS)
        seconds = ", ".join(f"{part} {taken:.0f} s" for part, taken in self.seconds.items())
        head = f"seed {self.seed}: {self.thrown.total()} faults, {kills} of them kills, in {seconds}"
        refused = f"starts that ended in a sentence that names the cause: {refusals}"
        end = f"outputs compared with those of an undisturbed run: {self.compared}; lost: {len(self.lost)}"
        return "\n".join([head, "", "| fault | thrown |", "|---|---|", *rows, "", refused, end, *self.lost])


def refusal(work: Callable[[], object]) -> str:
    """The sentence with which some work is refused; "" if it is done."""
    try:
        work()
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def _difference(found: object, expected: object) -> str:
    if not isinstance(found, dict) or not isinstance(expected, dict):
        return f"{found!r} is not {expected!r}"[:300]
    missing, surplus = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    changed = [name for name in found.keys() & expected.keys() if found[name] != expected[name]]
    return f"missing {missing[:3]}, surplus {surplus[:3]}, changed {sorted(changed)[:3]}"
