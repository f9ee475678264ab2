"""The section about a generator's diagnosis: what its samples keep of real images, and how it predicts each step."""

from typing import Any

from rdpm.pipeline.reporting import page

_KEPT = {
    "spread": "spread",
    "spread_8": "first 8 components",
    "spread_32": "first 32",
    "correlation": "correlation",
}
_STEPS = {
    "cross_entropy": "cross-entropy",
    "entropy": "entropy",
    "accuracy": "accuracy",
    "confidence": "confidence",
    "calibration_error": "calibration error",
    "latent_spread": "spread of z'",
    "latent_spread_8": "first 8 components",
    "latent_spread_32": "first 32",
    "latent_spread_rest": "all others",
}


def diagnosis_section(diagnosis: dict[str, Any]) -> str:
    """The section with both tables of diagnosis.json."""
    protocol = diagnosis["protocol"]
    kept = (
        f"{protocol['images']['images']} real images keep their codes of the first s steps, and the generator draws "
        "the others: s = 0 gives plain samples, the last s reconstructions. The spread is the variance of what comes "
        f"out over that of the originals, {protocol['settings']['spread']}, of images averaged over boxes. Where it "
        "rises with s, the plain samples lose variety."
    )
    steps = (
        "Given the real codes before step t, how the generator predicts those of t: cross-entropy and entropy in nats "
        "per code (equal if its probabilities can be trusted), how often its first choice is right, and how sure it is "
        "of it. Then the variance of z' after step t of plain samples, over that of the real images."
    )
    return page.section(
        "Diagnosis",
        kept,
        _table("s", diagnosis["kept"], _KEPT),
        page.heading("Step by step"),
        page.paragraph(steps),
        _table("t", diagnosis["steps"], _STEPS),
    )


def _table(step: str, rows: list[dict[str, Any]], names: dict[str, str]) -> str:
    """A row per step, a column per name that the rows have."""
    shown = [name for name in names if name in rows[0]]
    cells = [(str(row["step"]), "", [f"{row[name]:.3g}" for name in shown]) for row in rows]
    return page.numbers([step, *(names[name] for name in shown)], cells)
