"""rdpm evaluate: samples, real images and a tokenizer to metrics.json."""

import json

from rdpm.jobs.arguments import parse
from rdpm.pipeline.evaluation.features import INCEPTION
from rdpm.pipeline.evaluation.inputs import EvaluateConfig
from rdpm.pipeline.evaluation.stage import JOB, run
from rdpm.pipeline.foundation.progress import say

Config = EvaluateConfig


def main(arguments: list[str]) -> None:
    """Entry of the subcommand: CONFIG.yaml or samples first, then keys."""
    first, *rest = arguments or [""]
    if first and "=" not in first and not first.startswith("-") and not first.endswith((".yaml", ".yml")):
        arguments = [*_without_config(first, rest), *rest]
    run(parse(Config, JOB, arguments))


def _without_config(samples: str, given: list[str]) -> list[str]:
    """Settings for samples alone: metrics beside them; Inception's features, or none where its weights are missing."""
    keys = {argument.split("=")[0] for argument in given}
    out = samples.rstrip("/").removesuffix(".npz") + ".metrics.json"
    settings = [f"samples={json.dumps(samples)}", f"out={json.dumps(out)}"]
    if "out" not in keys:
        say(f"evaluate: metrics go to {out}")
    if not keys & {"extractor", "train_images"}:
        settings.append(f"extractor={'inception' if 'inception_weights' in keys or _has_inception() else 'none'}")
    return settings


def _has_inception() -> bool:
    """Whether Inception's weights are here, or can be downloaded; else says why not."""
    try:
        INCEPTION.read("")
    except ValueError as missing:
        say(f"evaluate: plain pixels are measured and no features, because {missing}")
        return False
    return True
