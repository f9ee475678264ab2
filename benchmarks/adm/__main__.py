"""How far our FID, sFID, inception score, precision and recall are from those of ADM's own evaluator.

    git clone https://github.com/openai/guided-diffusion CHECKOUT
    python3.11 -m venv TF && TF/bin/pip install tensorflow-cpu==2.12.* numpy==1.23.5 "scipy<1.12" requests tqdm
    python -m benchmarks.adm CHECKOUT TF/bin/python CONFIG [key=value ...] [--made FEATURES]

CONFIG is one of `rdpm evaluate`: its samples, its reference and its extractor give the features. With --made they are
those of a random network instead, as many as it says, at the length that Inception's have (|x|^2 near 600), where
rounding to float16 matters; spatial features are as many, and there are 1,008 logits. Both sides get the same features.
numpy is older than 1.24 because the evaluator uses `np.bool`. Prints JSON: a row per metric with ours, theirs and the
difference, relative for distances and scores. Ours are streamed, as `rdpm evaluate` computes them.
"""

import argparse
import contextlib
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdpm.pipeline.evaluation.distribution import frechet_distance
from rdpm.pipeline.evaluation.feature_statistics import Statistics, take_statistics
from rdpm.pipeline.evaluation.features import Extractor, Outputs
from rdpm.pipeline.evaluation.image_sets import ImageSet
from rdpm.pipeline.evaluation.inputs import EvaluateConfig, open_inputs
from rdpm.pipeline.evaluation.manifold import float16_holds, precision_recall
from rdpm.pipeline.evaluation.protocol import NEIGHBOURS
from rdpm.pipeline.evaluation.stage import JOB
from rdpm.pipeline.foundation.config import load_config

_LENGTH = 600.0  # |x|^2 of Inception's features, about
_SQUARE = 0.7  # of a pixel in [-1, 1], about
_LOGITS = 1008
_SHARES = ("precision", "recall", "precision_float32", "recall_float32")


class MadeExtractor(Extractor):
    """Random features of images of one size: rectified random projections. Float64, so batches do not matter."""

    name = "made"

    def __init__(self, count: int, values: int) -> None:
        """count: features, and spatial ones. values: of an image."""
        super().__init__(batch=250)
        self.digest = hashlib.sha256(f"{count} {values}".encode()).hexdigest()
        noise = torch.Generator().manual_seed(0)
        sizes = (count, count, _LOGITS)
        self._weights = [torch.randn(values, size, generator=noise, dtype=torch.float64) for size in sizes]
        self._count = count

    def outputs(self, images: Tensor) -> Outputs:
        """Features (b, count), logits (b, 1008) and maps (b, 7, 1, count / 7), rounded down."""
        x = images.flatten(1).cpu().double() / 127.5 - 1
        features, spatial, logits = (x @ weight / x.shape[1] ** 0.5 for weight in self._weights)
        features = features.clamp(min=0) * (2 * _LENGTH / _SQUARE / self._count) ** 0.5
        maps = spatial[:, : self._count // 7 * 7].clamp(min=0).unflatten(1, (7, 1, -1))
        return features.to(self.device), logits.to(self.device), maps.to(self.device)


def main() -> None:
    """Entry of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", help="a checkout of openai/guided-diffusion")
    parser.add_argument("python", help="the Python of an environment that has TensorFlow")
    parser.add_argument("config", help="a config of rdpm evaluate")
    parser.add_argument("overrides", nargs="*", help="key=value, of the config")
    parser.add_argument("--made", type=int, default=0, metavar="FEATURES", help="a random network's features instead")
    arguments = parser.parse_args()
    config = load_config(EvaluateConfig, JOB, arguments.config, arguments.overrides)
    with contextlib.redirect_stdout(sys.stderr):  # progress lines
        result = agreement(config, arguments.checkout, arguments.python, arguments.made)
    print(json.dumps(result, indent=1))


def agreement(config: EvaluateConfig, checkout: str, python: str, made: int = 0) -> dict[str, Any]:
    """Both sides' numbers, with what they were computed from."""
    torch.set_num_threads(config.threads)
    inputs = open_inputs(config)
    assert inputs.samples
    reference = inputs.reference
    assert reference
    values = inputs.samples.size**2 * inputs.samples.channels
    extractor = MadeExtractor(made, values) if made else inputs.extractor
    sets = {"reference": reference, "samples": inputs.samples}
    statistics = {name: take_statistics(images, extractor, len(images), name) for name, images in sets.items()}
    theirs = run_theirs(checkout, python, sets, extractor)
    own = ours(statistics["reference"], statistics["samples"])
    rows = {name: row(name, own[name], number) for name, number in theirs["numbers"].items()}
    facts = {name: len(each.features) for name, each in statistics.items()}
    features = len(statistics["samples"].pool.mean)
    return {"extractor": extractor.name, "features": features, "images": facts, **rows, **theirs["versions"]}


def ours(reference: Statistics, samples: Statistics) -> dict[str, float]:
    """Our numbers under the evaluator's names."""
    rounded = "float16" if float16_holds(reference.features, samples.features) else "float32"
    numbers = {"inception_score": samples.score}
    for distances, suffix in ((rounded, ""), ("float32", "_float32")):
        shares = precision_recall(reference.features, samples.features, NEIGHBOURS, distances)
        numbers |= {f"precision{suffix}": shares.precision, f"recall{suffix}": shares.recall}
    numbers["frechet_distance"] = frechet_distance(reference.pool, samples.pool)
    if reference.spatial and samples.spatial:
        numbers["spatial_frechet_distance"] = frechet_distance(reference.spatial, samples.spatial)
    return numbers


def row(name: str, own: float, theirs: float) -> dict[str, float]:
    """One metric of both sides, and how far apart they are."""
    difference = own - theirs if name in _SHARES else own / theirs - 1
    return {"ours": own, "theirs": theirs, "difference": difference}


def run_theirs(checkout: str, python: str, sets: dict[str, ImageSet], extractor: Extractor) -> dict[str, Any]:
    """The evaluator's numbers. Raises CalledProcessError when its process fails."""
    arrays: dict[str, np.ndarray] = {}
    for name, images in sets.items():
        found = [extractor.extract(chunk.pixels) for chunk in images.chunks()]
        for kind, field in (("pool", "features"), ("spatial", "spatial"), ("logits", "logits")):
            parts = [getattr(features, field) for features in found]
            if parts[0] is not None:
                arrays[f"{name}_{kind}"] = np.concatenate(parts)
    with tempfile.TemporaryDirectory() as folder:
        features, out = Path(folder) / "features.npz", Path(folder) / "numbers.json"
        np.savez(features, allow_pickle=False, **arrays)
        evaluator = Path(checkout).resolve() / "evaluations" / "evaluator.py"
        driver = Path(__file__).with_name("theirs.py")
        subprocess.run([python, str(driver), str(evaluator), str(features), str(out)], check=True, cwd=folder)
        return json.loads(out.read_text())


if __name__ == "__main__":
    main()
