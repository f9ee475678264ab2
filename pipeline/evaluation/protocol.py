"""What each number in metrics.json means and what it was measured on, so that only equal things are compared.

Numbers are named `part.name`; `_real` is the same measure of the held-out images, `_matched` the mean over random
class-balanced draws of as many samples as there are held-out images. docs/evaluation.md says all of this at length.
"""

from typing import Any

from rdpm.pipeline.evaluation.feature_statistics import PROTOCOL_VERSION, SPLIT_IMAGES
from rdpm.pipeline.evaluation.fidelity import PAIRS, POOLED, POOLED_CONVENTION

Metrics = dict[str, Any]

NEIGHBOURS = 3  # k of precision and recall
ROUNDING = "uint8 = round((clamp(x, -1, 1) + 1) * 127.5), half to even; of every picture, file and metric"
INPUTS = ("extractor", "reference", "samples", "held_out", "train", "tokenizer", "generator")

_FRECHET = "|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), unbiased covariances, float64"
_SPATIAL = "first 7 channels of the maps, flattened by row, column, channel"
_MANIFOLD = f"k = {NEIGHBOURS}, squared distances by products"
_SCORE = f"contiguous splits of {SPLIT_IMAGES} in the order of the set, mean over splits"
_NEAREST = "root mean square in grey levels to the nearest training image, thumbnails of at most 32 pixels a side"
_PAIRS = {name: convention.says for name, convention in PAIRS.items()} | {POOLED: POOLED_CONVENTION}

# name: (convention, the inputs it depends on)
_MEASURES: dict[str, tuple[str, tuple[str, ...]]] = {
    **{f"tokenizer.{name}": (says, ("held_out", "tokenizer")) for name, says in _PAIRS.items()},
    "tokenizer.lpips": ("LPIPS 0.1, VGG16, images in [-1, 1] from uint8", ("held_out", "tokenizer")),
    "tokenizer.rfid": (f"{_FRECHET}; reconstructions against their originals", ("extractor", "held_out", "tokenizer")),
    "tokenizer.codebook_usage": ("share of codes chosen at any step", ("held_out", "tokenizer")),
    "tokenizer.perplexity_by_step": ("exp of the entropy of a step's codes", ("held_out", "tokenizer")),
    "generator.frechet_distance": (_FRECHET, ("extractor", "reference", "samples")),
    "generator.frechet_distance_real": (_FRECHET, ("extractor", "reference", "held_out")),
    "generator.frechet_distance_matched": (f"{_FRECHET}; mean over draws", ("extractor", "reference", "samples")),
    "generator.frechet_distance_deviation": ("standard deviation over draws", ("extractor", "reference", "samples")),
    "generator.frechet_ratio": ("matched over real", ("extractor", "reference", "samples", "held_out")),
    "generator.spatial_frechet_distance": (f"{_FRECHET}; {_SPATIAL}", ("extractor", "reference", "samples")),
    "generator.spatial_frechet_distance_real": (f"{_FRECHET}; {_SPATIAL}", ("extractor", "reference", "held_out")),
    "generator.inception_score": (_SCORE, ("extractor", "samples")),
    "generator.inception_score_real": (_SCORE, ("extractor", "held_out")),
    **{
        f"generator.{share}{suffix}": (f"{_MANIFOLD}, {rounded}", ("extractor", "reference", of))
        for share in ("precision", "recall")
        for suffix, rounded, of in (
            ("", "rounded as settings.manifold_distances says", "samples"),
            ("_float32", "rounded to float32", "samples"),
            ("_real", "rounded as settings.manifold_distances says", "held_out"),
            ("_matched", "rounded as settings.manifold_distances says; mean over draws", "samples"),
        )
    },
    "generator.class_accuracy": ("share whose highest logit is the class asked for", ("extractor", "samples")),
    "generator.classifier_accuracy_on_real": ("share recognized", ("extractor", "held_out")),
    "generator.nearest_train_distance": (f"{_NEAREST}; median", ("train", "samples")),
    "generator.nearest_train_distance_p01": (f"{_NEAREST}; first percentile", ("train", "samples")),
    "generator.nearest_train_distance_real": (f"{_NEAREST}; median", ("train", "held_out")),
    "generator.nearest_train_distance_real_p01": (f"{_NEAREST}; first percentile", ("train", "held_out")),
    "generator.copies": (
        "share of samples nearer to a training image than the first percentile of the held-out images; 0.01 for "
        "samples as new as those",
        ("train", "held_out", "samples"),
    ),
}


def protocol(parts: dict[str, Metrics], inputs: dict[str, Any], settings: dict[str, Any]) -> Metrics:
    """The inputs by name, each with its digest and count, and for each number its convention and its inputs."""
    assert set(inputs) <= set(INPUTS), inputs
    metrics = {}
    for name in (f"{part}.{name}" for part, numbers in parts.items() for name in numbers):
        says, of = _MEASURES[name]
        metrics[name] = {"convention": says, "of": list(of)}
    return {"version": PROTOCOL_VERSION, **inputs, "settings": settings, "rounding": ROUNDING, "metrics": metrics}
