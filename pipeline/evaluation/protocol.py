"""What each metric in metrics.json means and which inputs it depends on, so that nobody compares unlike numbers.

Metrics are named `part.name`. A name with `_real` is the same metric of the held-out images. One with `_matched` is the
mean over random class-balanced draws of as many samples as there are held-out images. docs/evaluation.md has details.
"""

from typing import Any

from rdpm.pipeline.evaluation.feature_statistics import PROTOCOL_VERSION, SPLIT_IMAGES
from rdpm.pipeline.evaluation.fidelity import PAIRS, POOLED, POOLED_CONVENTION

Metrics = dict[str, Any]

NEIGHBOURS = 3  # k of precision and recall
ROUNDING = "uint8 = round((clamp(x, -1, 1) + 1) * 127.5), half to even, in every picture, file and metric"
INPUTS = ("extractor", "reference", "samples", "held_out", "train", "tokenizer", "generator")

_FRECHET = "|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), unbiased covariances, float64"
_SPATIAL = "first 7 channels of the maps, flattened by row, column, channel"
_MANIFOLD = f"k = {NEIGHBOURS}, squared distances from products"
_SCORE = f"contiguous splits of {SPLIT_IMAGES} images in the order of the set, mean over splits"
_NEAREST = "root mean square in grey levels to the nearest training image, thumbnails of at most 32 x 32 pixels"
_PAIRS = {name: convention.says for name, convention in PAIRS.items()} | {POOLED: POOLED_CONVENTION}

# name: (convention, the inputs it depends on)
_METRICS: dict[str, tuple[str, tuple[str, ...]]] = {
    **{f"tokenizer.{name}": (says, ("held_out", "tokenizer")) for name, says in _PAIRS.items()},
    "tokenizer.lpips": ("LPIPS 0.1, VGG16, images in [-1, 1] from uint8", ("held_out", "tokenizer")),
    "tokenizer.rfid": (f"{_FRECHET}; reconstructions against their originals", ("extractor", "held_out", "tokenizer")),
    "tokenizer.codebook_usage": ("share of codes that are used at any step", ("held_out", "tokenizer")),
    "tokenizer.perplexity_by_step": ("exp of the entropy of the codes of a step", ("held_out", "tokenizer")),
    "generator.frechet_distance": (_FRECHET, ("extractor", "reference", "samples")),
    "generator.frechet_distance_real": (_FRECHET, ("extractor", "reference", "held_out")),
    "generator.frechet_distance_matched": (f"{_FRECHET}; mean over draws", ("extractor", "reference", "samples")),
    "generator.frechet_distance_deviation": ("standard deviation over draws", ("extractor", "reference", "samples")),
    "generator.frechet_ratio": (
        "frechet_distance_matched divided by frechet_distance_real",
        ("extractor", "reference", "samples", "held_out"),
    ),
    "generator.spatial_frechet_distance": (f"{_FRECHET}; {_SPATIAL}", ("extractor", "reference", "samples")),
    "generator.spatial_frechet_distance_real": (f"{_FRECHET}; {_SPATIAL}", ("extractor", "reference", "held_out")),
    "generator.inception_score": (_SCORE, ("extractor", "samples")),
    "generator.inception_score_real": (_SCORE, ("extractor", "held_out")),
    **{
        f"generator.{share}{suffix}": (f"{_MANIFOLD}, {rounded}", ("extractor", "reference", images))
        for share in ("precision", "recall")
        for suffix, rounded, images in (
            ("", "rounded to settings.manifold_distances", "samples"),
            ("_float32", "rounded to float32", "samples"),
            ("_real", "rounded to settings.manifold_distances", "held_out"),
            ("_matched", "rounded to settings.manifold_distances; mean over draws", "samples"),
        )
    },
    "generator.class_accuracy": (
        "share of samples whose highest logit is the requested class",
        ("extractor", "samples"),
    ),
    "generator.classifier_accuracy_on_real": (
        "share of held-out images whose highest logit is their class",
        ("extractor", "held_out"),
    ),
    "generator.nearest_train_distance": (f"{_NEAREST}; median", ("train", "samples")),
    "generator.nearest_train_distance_p01": (f"{_NEAREST}; first percentile", ("train", "samples")),
    "generator.nearest_train_distance_real": (f"{_NEAREST}; median", ("train", "held_out")),
    "generator.nearest_train_distance_real_p01": (f"{_NEAREST}; first percentile", ("train", "held_out")),
    "generator.copies": (
        "share of samples that are nearer to a training image than the first percentile of the held-out images; 0.01 "
        "for samples that are as new as held-out images",
        ("train", "held_out", "samples"),
    ),
}


def protocol(parts: dict[str, Metrics], inputs: dict[str, Any], settings: dict[str, Any]) -> Metrics:
    """The protocol in metrics.json: every input with its digest and count, and every metric's convention and inputs.

    parts: the metrics of tokenizer and generator. inputs: facts about each input, by its name in INPUTS.
    """
    assert set(inputs) <= set(INPUTS), inputs
    metrics = {}
    for name in (f"{part}.{name}" for part, numbers in parts.items() for name in numbers):
        convention, depends_on = _METRICS[name]
        metrics[name] = {"convention": convention, "of": list(depends_on)}
    return {"version": PROTOCOL_VERSION, **inputs, "settings": settings, "rounding": ROUNDING, "metrics": metrics}
