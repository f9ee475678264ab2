"""The report's numbers: samples beside held-out images, reconstructions, seconds."""

from typing import Any

from rdpm.pipeline.reporting import page
from rdpm.pipeline.reporting.paper import TABLE_5, PublishedRow

# name, key of the samples, key of the held-out images, note
_Rows = tuple[tuple[str, str, str, str], ...]
_WHOLE: _Rows = (
    ("{frechet}", "frechet_distance", "frechet_distance_real", "To the reference. Lower is better."),
    (
        "{spatial}",
        "spatial_frechet_distance",
        "spatial_frechet_distance_real",
        "The same of features that keep their place in the image. Lower is better.",
    ),
    ("{score}", "inception_score", "inception_score_real", "Certain of the class, and varied. Higher is better."),
    ("Precision", "precision", "precision_real", "Share of images that lie among the reference's. Higher is better."),
    ("Recall", "recall", "recall_real", "Share of the reference's images that these lie around. Higher is better."),
)
_MATCHED: _Rows = (
    ("{frechet}", "frechet_distance_matched", "frechet_distance_real", "Lower is better."),
    ("Precision", "precision_matched", "precision_real", "Higher is better."),
    ("Recall", "recall_matched", "recall_real", "Higher is better."),
    (
        "Class accuracy",
        "class_accuracy",
        "classifier_accuracy_on_real",
        "Share recognized as the class asked for. Higher is better.",
    ),
    (
        "Nearest training image",
        "nearest_train_distance",
        "nearest_train_distance_real",
        "Median distance in grey levels (0 to 255), root mean square. Far below real would mean copying.",
    ),
    (
        "Copies",
        "copies",
        "",
        "Share nearer to a training image than all but 1% of held-out images. About 0.01 for new images.",
    ),
)


def numbers_section(metrics: dict[str, Any]) -> str:
    """The section of the page."""
    protocol, times = metrics["protocol"], metrics["seconds"]
    held_out = protocol["held_out"]["images"]
    how = (
        f"Features of the {protocol['extractor']['name']}, taken as the ADM evaluator takes them: "
        f"{protocol['samples']['images']} samples, and {held_out} held-out images, against a reference of "
        f"{protocol['reference']['images']}. Distances fall as the sets grow."
    )
    matched = (
        f"{held_out} images a side, samples as the mean of {protocol['settings']['draws']} random class-balanced "
        "draws: the held-out column is what a perfect generator would get."
    )
    seconds = [(job, "", (f"{taken:.0f}",)) for job, taken in [*times.items(), ("together", sum(times.values()))]]
    return page.section(
        "Numbers",
        how,
        _compared(metrics, _WHOLE),
        page.heading("Equal counts"),
        page.paragraph(matched),
        _compared(metrics, _MATCHED),
        page.heading("Tokenizer"),
        page.numbers(("Reconstruction", "value"), _reconstruction(metrics)),
        page.heading("Time"),
        page.numbers(("Job", "seconds"), seconds),
    )


def paper_section(metrics: dict[str, Any], name: str, parameters: int, steps: int) -> str:
    """The run as a line of the paper's Table 5, above the paper's lines.

    name: of the generator; parameters: how many it has; steps: T.
    """
    found, protocol = metrics["generator"], metrics["protocol"]
    extractor = protocol["extractor"]["name"]
    lead = "The first line is this run; the others are as the paper prints them, for ImageNet at 256 x 256. "
    if extractor == "inception":
        lead += f"They compare where this run is of those, and of 50,000; it has {protocol['samples']['images']}."
    else:
        names = names_of(extractor)
        lead += (
            f"Nothing compares across them: here the images are others, and FID and IS stand for "
            f"{names['frechet']} and {names['score']}."
        )
    measures = ("frechet_distance", "inception_score", "precision", "recall")
    mine = (name, "discrete diffusion", (f"{parameters / 1e6:.3g}M", str(steps), *(_short(found[m]) for m in measures)))
    heads = ("Model", "Parameters", "Steps", "FID", "IS", "Precision", "Recall")
    own = [_published(row) for row in TABLE_5 if row.model.startswith("RDPM")]
    others = [_published(row) for row in TABLE_5 if not row.model.startswith("RDPM")]
    return page.section(
        "Beside the paper's Table 5",
        lead,
        page.numbers(heads, [mine, *own]),
        page.folded("The other lines of Table 5", page.numbers(heads, others)),
    )


def _published(row: PublishedRow) -> tuple[str, str, tuple[str, ...]]:
    measures = (row.fid, row.inception_score, row.precision, row.recall)
    return row.model, row.kind, (row.parameters, row.steps, *("-" if m is None else str(m) for m in measures))


def names_of(extractor: str) -> dict[str, str]:
    """What the measures may be called: FID and its kin are Inception's alone."""
    if extractor == "inception":
        return {"frechet": "FID", "spatial": "sFID", "score": "Inception score"}
    of = f"({extractor})"
    return {
        "frechet": f"Fréchet distance {of}",
        "spatial": f"Spatial Fréchet distance {of}",
        "score": f"Inception-style score {of}",
    }


def _compared(metrics: dict[str, Any], rows: _Rows) -> str:
    """A table of the samples beside the held-out images."""
    found, names = metrics["generator"], names_of(metrics["protocol"]["extractor"]["name"])
    cells = [
        (name.format(**names), note, (_short(found[key]), _short(found.get(real, ""))))
        for name, key, real, note in rows
        if key in found
    ]
    return page.numbers(("Measure", "samples", "held-out"), cells)


def _reconstruction(metrics: dict[str, Any]) -> list[tuple[str, str, tuple[str]]]:
    """Every plain number of the tokenizer with its convention."""
    said = metrics["protocol"]["metrics"]
    return [
        (name, said[f"tokenizer.{name}"]["convention"], (_short(value),))
        for name, value in metrics["tokenizer"].items()
        if isinstance(value, float)
    ]


def _short(value: float | str) -> str:
    """A number to four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
