"""The stage behind `rdpm evaluate`: samples, real images and a tokenizer to metrics.json."""

from typing import Any

from rich.console import Console
from rich.table import Table

from rdpm.pipeline.evaluation.evaluate import evaluate
from rdpm.pipeline.evaluation.inputs import EvaluateConfig, input_digests
from rdpm.pipeline.evaluation.protocol import in_order, is_detail
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.foundation.records import begin, refuse_folder

JOB = "evaluate"
_PARTS = ("tokenizer", "generator")
_LEAST = 3  # classes that are named
_REAL = {  # metrics of held-out images that are not named like the samples' metric with "_real" at the end
    "class_accuracy": "classifier_accuracy_on_real",
}


def run(config: EvaluateConfig) -> None:
    """Write config.out and print it; if its record says that it is finished, only print it.

    Raises ValueError for bad input; see `evaluate`.
    """
    refuse_folder(config.out)
    with begin(JOB, config, lambda: input_digests(config)) as record:
        if record.lease is None:
            say(f"evaluate: {config.out} is already there")
            _show(files.read_json(config.out), config.out)
            return
        metrics = evaluate(config)
        record.lease.check()
        files.write_json(config.out, metrics)
        record.finish({part: metrics[part] for part in _PARTS if part in metrics})
    _show(metrics, config.out)


def _show(metrics: dict[str, Any], out: str) -> None:
    """Print the metrics as a table, with those of the held-out images beside those of the samples.

    Other conventions of PSNR and SSIM, and deviations, are left to the file. A line names the classes whose samples the
    classifier knows least.
    """
    table = Table("metric", "value", "held-out images")
    for part in (part for part in _PARTS if part in metrics):
        numbers = {name: value for name, value in metrics[part].items() if isinstance(value, float)}
        real_names = {name: _REAL.get(name, f"{name.removesuffix('_matched')}_real") for name in numbers}
        for name in in_order(part, numbers):
            if name not in real_names.values() and not is_detail(name):
                real = numbers.get(real_names[name])
                table.add_row(f"{part}.{name}", f"{numbers[name]:.4g}", "" if real is None else f"{real:.4g}")
    Console().print(table)
    say(f"evaluate: {out} has intervals, deviations and other conventions too, and what each number means")
    by_class = metrics.get("generator", {}).get("class_accuracy_by_class", {})
    if len(by_class) > 1:
        least = sorted(by_class, key=by_class.__getitem__)[:_LEAST]
        say(f"evaluate: class accuracy is lowest for {', '.join(f'{name} ({by_class[name]:.2g})' for name in least)}")
