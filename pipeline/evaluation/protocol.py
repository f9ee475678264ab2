"""What each metric in metrics.json means and which inputs it depends on, so that nobody compares unlike numbers.

Metrics are named `part.name`. A name with `_real` is the same metric of the held-out images. One with `_matched` is the
mean over random draws of as many samples as there are held-out images; draws are class-balanced where labels are known.
docs/evaluation.md has details.
"""

import re
from collections.abc import Iterable
from typing import Any

from rdpm.pipeline.evaluation.feature_statistics import PROTOCOL_VERSION, SPLIT_IMAGES
from rdpm.pipeline.evaluation.fidelity import PAIRS, POOLED, POOLED_CONVENTION
from rdpm.pipeline.evaluation.kernel import SUBSETS

Metrics = dict[str, Any]

NEIGHBOURS = 3  # k of precision and recall
ROUNDING = "uint8 = round((clamp(x, -1, 1) + 1) * 127.5), half to even, in every picture, file and metric"
INPUTS = ("extractor", "reference", "samples", "held_out", "train", "tokenizer", "generator")

_FRECHET = "|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), unbiased covariances, float64"
_SPATIAL = "first 7 channels of the maps, flattened by row, column, channel"
_MANIFOLD = f"k = {NEIGHBOURS}, squared distances from products"
_SCORE = f"contiguous splits of {SPLIT_IMAGES} images in the order of the set, mean over splits"
_NEAREST = "root mean square in grey levels to the nearest training image, thumbnails of at most 32 x 32 pixels"
WITHIN_CLASSES, WHOLE_SET = "within classes", "over the whole set"
_PIXELS = "means over at most 8 x 8 boxes, in grey levels"
_PIXEL_FRECHET = f"{_FRECHET}, of {_PIXELS}; a mean over boxes, not a sum"
_SPREAD = (
    f"variance of {_PIXELS}, over the reference's, as settings.spread says; unbiased per class, weighted by the "
    "reference's counts; components from the half of the reference that is not measured"
)
_BOOTSTRAP = "95% interval over resamples of each class of the samples, reference and held-out images fixed"
_KERNEL = f"unbiased MMD^2 with kernel (x.y / f + 1)^3, over {SUBSETS} random subsets of settings.kid_images images"
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
    **{
        f"generator.kid{name}{suffix}": (f"{_KERNEL}; {says}", ("extractor", "reference", images))
        for name, says in (("", "mean"), ("_deviation", "standard deviation over the subsets"))
        for suffix, images in (("", "samples"), ("_real", "held_out"))
    },
    **{
        f"generator.{name}{suffix}": (f"{_SPREAD}; {part}{more}", ("reference", images))
        for name, part in (
            ("spread", "in total"),
            ("spread_8", "within the first 8 principal components"),
            ("spread_32", "within the first 32 principal components"),
        )
        for suffix, more, images in (
            ("", "", "samples"),
            ("_interval", f"; {_BOOTSTRAP}", "samples"),
            ("_real", "", "held_out"),
        )
    },
    "generator.pixel_frechet_distance": (_PIXEL_FRECHET, ("reference", "samples")),
    "generator.pixel_frechet_distance_interval": (f"{_PIXEL_FRECHET}; {_BOOTSTRAP}", ("reference", "samples")),
    "generator.pixel_frechet_distance_real": (_PIXEL_FRECHET, ("reference", "held_out")),
    "generator.pixel_frechet_distance_matched": (f"{_PIXEL_FRECHET}; mean over draws", ("reference", "samples")),
    "generator.pixel_frechet_distance_deviation": ("standard deviation over draws", ("reference", "samples")),
    "generator.pixel_frechet_ratio": (
        "pixel_frechet_distance_matched divided by pixel_frechet_distance_real",
        ("reference", "samples", "held_out"),
    ),
    "generator.pixel_frechet_ratio_interval": (
        f"pixel_frechet_ratio; {_BOOTSTRAP}",
        ("reference", "samples", "held_out"),
    ),
    "generator.class_accuracy": (
        "share of samples whose highest logit is the requested class",
        ("extractor", "samples"),
    ),
    "generator.class_accuracy_by_class": (
        "the same by class, by its name",
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


DIAGNOSIS = {  # of diagnosis.json: of the rows of `kept` per s, and of the rows of `steps` per t
    "kept": "real images whose codes of t <= s are kept and drawn afterwards, with the noise of their encoding",
    "spread": f"of the drawn images, over their originals': variance of {_PIXELS}, as settings.spread says",
    "spread_8": "the same within the first 8 principal components of the originals, from the half not measured",
    "spread_32": "within the first 32",
    "spread_rest": "in all others",
    "correlation": f"of {_PIXELS}, of drawn images with their originals, each minus the mean of its class",
    "cross_entropy": "nats per code, from the real codes of the steps before (teacher forcing)",
    "entropy": "nats per code, of the predicted distribution; in the mean the cross-entropy, if that is calibrated",
    "accuracy": "share of codes that are the most likely one",
    "confidence": "mean probability of the most likely code",
    "calibration_error": "of the most likely code, 15 bins of equal width (Guo et al. 2017)",
    "latent_spread": "variance of z'_t of plain samples, over that of z'_t of the real images",
    "latent_spread_8": "the same within the first 8 principal components of the real z'_t, from the half not measured",
    "latent_spread_32": "within the first 32",
    "latent_spread_rest": "in all others",
}


def is_detail(name: str) -> bool:
    """Whether a metric is another convention of PSNR or SSIM, or a deviation: for those who look for it."""
    return re.search(r"^(psnr|ssim)_|_(deviation|float32|p01)$", name) is not None


def in_order(part: str, names: Iterable[str]) -> list[str]:
    """The names of a part's metrics in the order in which people read them; unknown ones are last."""
    places = {name: place for place, name in enumerate(_METRICS)}
    return sorted(names, key=lambda name: places.get(f"{part}.{name}", len(places)))


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
