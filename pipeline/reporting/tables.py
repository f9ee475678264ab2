"""The tables of the report: samples beside held-out images, reconstructions, seconds, and the paper's Table 5."""

from collections.abc import Sequence
from typing import Any

from rdpm.pipeline.evaluation.protocol import in_order, is_detail
from rdpm.pipeline.reporting import page
from rdpm.pipeline.reporting.paper import TABLE_5, PublishedRow
from rdpm.storage_schemas.sweep import SweepRow

# name, key of the samples, key of the held-out images, explanation
_Rows = tuple[tuple[str, str, str, str], ...]
_ALL: _Rows = (
    ("{frechet}", "frechet_distance", "frechet_distance_real", "Distance to the reference. Lower is better."),
    (
        "{spatial}",
        "spatial_frechet_distance",
        "spatial_frechet_distance_real",
        "The same distance for features that keep their position in the image. Lower is better.",
    ),
    (
        "{score}",
        "inception_score",
        "inception_score_real",
        "High when every image clearly shows one class and all classes occur. Higher is better.",
    ),
    (
        "Precision",
        "precision",
        "precision_real",
        "Share of these images that are close to images of the reference. Higher is better.",
    ),
    (
        "Recall",
        "recall",
        "recall_real",
        "Share of the reference's images that are close to these images. Higher is better.",
    ),
    (
        "{kernel}",
        "kid",
        "kid_real",
        "Distance to the reference, unbiased in the number of images: 0 in the mean for a perfect generator.",
    ),
)
_PIXELS: _Rows = (
    (
        "Spread",
        "spread",
        "spread_real",
        "Variance of these images over the reference's. 1 for images as varied as real ones, less where variety lacks.",
    ),
    (
        "Spread, first 8 components",
        "spread_8",
        "spread_8_real",
        "The same in the 8 directions in which real images vary most. Scatter elsewhere cannot make up for it.",
    ),
    ("Spread, first 32 components", "spread_32", "spread_32_real", "The same in the first 32 directions."),
    (
        "Pixel Fréchet distance",
        "pixel_frechet_distance",
        "pixel_frechet_distance_real",
        "Distance to the reference, in squared grey levels per box. Lower is better.",
    ),
    (
        "Pixel Fréchet distance, equal counts",
        "pixel_frechet_distance_matched",
        "pixel_frechet_distance_real",
        "The same of as many samples as there are held-out images, mean over draws.",
    ),
    (
        "Pixel Fréchet ratio",
        "pixel_frechet_ratio",
        "",
        "The distance at equal counts over that of the held-out images. 1 for a perfect generator.",
    ),
)
_MATCHED: _Rows = (
    ("{frechet}", "frechet_distance_matched", "frechet_distance_real", "Lower is better."),
    ("Precision", "precision_matched", "precision_real", "Higher is better."),
    ("Recall", "recall_matched", "recall_real", "Higher is better."),
)
_CLASSES_AND_COPIES: _Rows = (
    (
        "Class accuracy",
        "class_accuracy",
        "classifier_accuracy_on_real",
        "Share of images that the classifier assigns to their class. Higher is better.",
    ),
    (
        "Nearest training image",
        "nearest_train_distance",
        "nearest_train_distance_real",
        "Median distance to the nearest training image: root mean square difference in grey levels, 0 to 255. A value "
        "far below that of held-out images suggests copying.",
    ),
    (
        "Copies",
        "copies",
        "",
        "Share of samples that are nearer to a training image than 99% of the held-out images are. About 0.01 for new "
        "images.",
    ),
)
_JOBS = ("prepare", "train-tokenizer", "tokenize", "train-generator", "calibrate", "sample", "evaluate")
_SWEPT = {
    "spread": "Spread (1 is best)",
    "spread_8": "Spread, first 8",
    "pixel_frechet_distance": "Pixel Fréchet distance",
    "frechet_distance": "Fréchet distance",
    "spatial_frechet_distance": "Spatial Fréchet distance",
    "inception_score": "Inception score",
    "precision": "Precision",
    "recall": "Recall",
    "class_accuracy": "Class accuracy",
}


def numbers_section(metrics: dict[str, Any]) -> str:
    """The section with every metric of the run."""
    protocol = metrics["protocol"]
    held_out, samples = protocol["held_out"]["images"], protocol["samples"]["images"]
    in_reference = protocol["reference"]["images"]  # 0 where the reference is a file that does not say
    lead = (
        f"The {samples} samples and {held_out} held-out images are compared with a reference"
        f"{f' of {in_reference} images' if in_reference else ''}. Fréchet distances get smaller as sets get larger."
    )
    features = (
        f"These metrics use features of the extractor {protocol['extractor']['name']}, and are computed as in ADM's "
        "evaluator, except the kernel distance."
    )
    parts = [_plain_pixels(metrics)] if "spread" in metrics["generator"] else []
    parts += [page.heading("Features"), page.paragraph(features), _compared(metrics, _ALL)]
    if "frechet_distance_matched" in metrics["generator"]:
        matched = (
            f"The same metrics with {held_out} images in both columns. The column of the samples is the mean over "
            f"{protocol['settings']['draws']} random class-balanced draws. A perfect generator would reach the column "
            "of the held-out images."
        )
        parts += [page.heading("Equal counts"), page.paragraph(matched), _compared(metrics, _MATCHED)]
    parts += [page.heading("Classes and copies"), _compared(metrics, _CLASSES_AND_COPIES)]
    if by_class := metrics["generator"].get("class_accuracy_by_class"):
        rows = [(name, "", (_short(by_class[name]),)) for name in sorted(by_class, key=by_class.__getitem__)]
        parts.append(page.folded("Class accuracy by class", page.numbers(("Class", "samples"), rows)))
    parts += [page.heading("Reconstructions"), page.numbers(("Metric", "value"), _reconstruction(metrics, False))]
    if other := _reconstruction(metrics, True):
        parts.append(page.folded("Other conventions", page.numbers(("Metric", "value"), other)))
    parts += [page.heading("Time"), page.numbers(("Job", "seconds"), _seconds(metrics["seconds"]))]
    return page.section("Metrics", lead, *parts)


def _plain_pixels(metrics: dict[str, Any]) -> str:
    """What no trained feature is needed for: the first table of the page."""
    how = metrics["protocol"]["settings"]["spread"]
    lead = (
        f"Images are averaged over boxes, at most 8 per side; no trained network is used. Spread is measured {how}. "
        "In brackets stands the 95% interval of drawing as many other samples (bootstrap)."
    )
    return page.heading("Plain pixels") + page.paragraph(lead) + _compared(metrics, _PIXELS)


def _seconds(times: dict[str, float]) -> list[tuple[str, str, tuple[str]]]:
    """Seconds per job, in the order in which jobs run, and their sum."""
    jobs = sorted(times, key=lambda job: _JOBS.index(job) if job in _JOBS else len(_JOBS))
    rows = [*((job, times[job]) for job in jobs), ("all jobs", sum(times.values()))]
    return [(name, "", (f"{seconds:.0f}",)) for name, seconds in rows]


def paper_section(metrics: dict[str, Any], name: str, parameters: int, steps: int) -> str:
    """The run as a row of the paper's Table 5, above the paper's rows; nothing for one without Inception's features.

    name: what the run's row is called. parameters: how many the generator has. steps: T.
    """
    generator, protocol = metrics["generator"], metrics["protocol"]
    if protocol["extractor"]["name"] != "inception":
        return ""
    lead = (
        "The first row is this run. The others are printed in the paper, for ImageNet at 256 x 256. Compare them with "
        f"this run only if it has the same images and 50,000 samples; it has {protocol['samples']['images']}."
    )
    keys = ("frechet_distance", "inception_score", "precision", "recall")
    values = (f"{parameters / 1e6:.3g}M", str(steps), *(_short(generator.get(key, "-")) for key in keys))
    heads = ("Model", "Parameters", "Steps", "FID", "IS", "Precision", "Recall")
    own = [_published(row) for row in TABLE_5 if row.model.startswith("RDPM")]
    others = [_published(row) for row in TABLE_5 if not row.model.startswith("RDPM")]
    return page.section(
        "Beside the paper's Table 5",
        lead,
        page.numbers(heads, [(name, "discrete diffusion", values), *own]),
        page.folded("The other rows of Table 5", page.numbers(heads, others)),
    )


def _published(row: PublishedRow) -> tuple[str, str, tuple[str, ...]]:
    """A row with as many digits as the paper prints."""
    metrics = ((row.fid, 2), (row.inception_score, 1), (row.precision, 2), (row.recall, 2))
    cells = ("-" if value is None else f"{value:.{digits}f}" for value, digits in metrics)
    return row.model, row.kind, (row.parameters, row.steps, *cells)


def sweep_table(rows: Sequence[SweepRow]) -> str:
    """A row per sampler setting, a column per metric that all of them have."""
    names = [name for name in _SWEPT if all(name in row.metrics for row in rows)]
    cells = [(row.name, "", [_short(row.metrics[name]) for name in names]) for row in rows]
    return page.numbers(["Sampler", *(_SWEPT[name] for name in names)], cells)


def names_of(extractor: str) -> dict[str, str]:
    """What the metrics are called. FID, sFID, Inception score and KID are names for Inception's features only."""
    if extractor == "inception":
        return {"frechet": "FID", "spatial": "sFID", "score": "Inception score", "kernel": "KID"}
    features = f"({extractor})"
    return {
        "kernel": f"Kernel distance {features}",
        "frechet": "FD-DINOv2" if extractor == "dinov2" else f"Fréchet distance {features}",
        "spatial": f"Spatial Fréchet distance {features}",
        "score": f"Inception-style score {features}",
    }


def _compared(metrics: dict[str, Any], rows: _Rows) -> str:
    """A table of the samples beside the held-out images, of those rows that the metrics have."""
    generator, names = metrics["generator"], names_of(metrics["protocol"]["extractor"]["name"])
    cells = [
        (name.format(**names), explanation, (_with_interval(generator, key), _short(generator.get(real, ""))))
        for name, key, real, explanation in rows
        if key in generator
    ]
    return page.numbers(("Metric", "samples", "held-out images"), cells)


def _with_interval(generator: dict[str, Any], key: str) -> str:
    """A number, and its interval if there is one."""
    low, high = generator.get(f"{key}_interval", (None, None))
    return _short(generator[key]) + (f" [{low:.3g}, {high:.3g}]" if low is not None else "")


def _reconstruction(metrics: dict[str, Any], details: bool) -> list[tuple[str, str, tuple[str]]]:
    """The single numbers of the tokenizer that are details, or those that are none, with their conventions."""
    conventions, values = metrics["protocol"]["metrics"], metrics["tokenizer"]
    return [
        (name, conventions[f"tokenizer.{name}"]["convention"], (_short(values[name]),))
        for name in in_order("tokenizer", values)
        if isinstance(values[name], float) and is_detail(name) == details
    ]


def _short(value: float | str) -> str:
    """A number with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
