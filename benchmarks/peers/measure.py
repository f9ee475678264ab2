"""Measures one model in this process, which has the environment and the folder of that model.

    python -P measure.py NAME train|sample --batch 1 --device cpu --precision bf16 --seconds 200

Prints one line of JSON; on a CPU images_per_s is per second of one core, which other work disturbs less. A training
step is forward, backward and AdamW, without the encoder of images and without an average of the weights. Sampling
includes the decoder. Where a sampler of many steps would take longer than `seconds`, two shorter ones are measured, and
their line is extended to the published number of steps.
"""

import argparse
import contextlib
import importlib.util
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

_REPEATS = 5


def _subjects() -> Any:
    """subjects.py beside this file, whatever else is importable here."""
    spec = importlib.util.spec_from_file_location("rdpm_subjects", Path(__file__).with_name("subjects.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Measurement:
    """One model's work: counted once, timed then."""

    def __init__(self, subject: Any, run: Any, seconds: float) -> None:
        self.subject, self.run, self.seconds = subject, run, seconds
        self.calls: dict[str, int] = {}
        for name, part in subject.parts.items():
            part.register_forward_pre_hook(lambda _, __, name=name: self._count(name))
        self.optimizer = None
        if not run.sampling:
            weights = [p for module in subject.weights for p in module.parameters() if p.requires_grad]
            self.optimizer = torch.optim.AdamW(weights, lr=1e-4, betas=(0.9, 0.95), fused=True)

    def _count(self, name: str) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1

    def work(self, steps: int) -> None:
        """A training step, or a batch of images."""
        bf16 = self.run.precision == "bf16" and not self.subject.own_precision
        with torch.set_grad_enabled(not self.run.sampling):
            with torch.autocast(self.run.device.type, torch.bfloat16, enabled=bf16):
                result = self.subject.work(steps)
            if self.optimizer is not None:
                result.backward()
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)

    def timed(self, steps: int) -> dict[str, float]:
        """Seconds of one call, and those of all cores."""
        start = time.perf_counter(), time.process_time()
        self.work(steps)
        if self.run.device.type == "cuda":
            torch.cuda.synchronize()
        return {"seconds": time.perf_counter() - start[0], "core_seconds": time.process_time() - start[1]}

    def at(self, steps: int, repeats: int) -> dict[str, float]:
        """FLOPs and forward passes by network, counted in a first call, and the median times of the calls after it.

        There are no more calls once all calls took `seconds`, so a slow model's time is that of its first call.
        """
        self.calls = {}
        with FlopCounterMode(display=False) as counter:
            first = self.timed(steps)
        counts = {"flops": float(counter.get_total_flops()), **self.calls}
        spent, times = first["seconds"], []
        while len(times) < repeats and spent < self.seconds:
            times.append(self.timed(steps))
            spent += times[-1]["seconds"]
        return {**counts, **{name: statistics.median(each[name] for each in times or [first]) for name in first}}

    def result(self) -> dict[str, Any]:
        """Counts and seconds at the published number of steps."""
        full, short = self.subject.steps, self.subject.short
        if short is None:
            return {**self.at(full, _REPEATS), "extrapolated": False}
        found = _extended([self.at(steps, 2) for steps in short], short, full)
        if found["seconds"] <= self.seconds:
            return {**found, **self.timed(full), "extrapolated": False}
        return {**found, "extrapolated": True}


def _extended(pair: list[dict[str, float]], short: tuple[int, int], full: int) -> dict[str, float]:
    """The line through two measurements, at `full` steps."""
    share = (full - short[0]) / (short[1] - short[0])
    return {name: pair[0][name] + share * (pair[1][name] - pair[0][name]) for name in pair[0]}


def _attempt(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result, or the error's last line."""
    try:
        return work()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Build and measure."""
    subjects = _subjects()
    device = torch.device(options.device)
    run = subjects.Run(options.kind == "sample", options.batch, device, options.precision)
    torch.manual_seed(0)
    with contextlib.redirect_stdout(None):
        subject = subjects.SUBJECTS[options.name](run)
        found = Measurement(subject, run, options.seconds).result()
    cuda = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if cuda else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    flops, seconds, cores = found.pop("flops"), found.pop("seconds"), found.pop("core_seconds")
    extrapolated = found.pop("extrapolated")
    return {
        "parameters": sum(p.numel() for module in subject.weights for p in module.parameters()) or None,
        "images_per_s": options.batch / (seconds if cuda else cores),
        "gflop_per_image": flops / options.batch / 1e9,
        "peak_gib": peak / 2**30,
        "forwards": {name: round(count) for name, count in found.items()} or {"transformer": subject.steps},
        "extrapolated": extrapolated,
        "torch": torch.__version__,
    }


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("kind", choices=("train", "sample"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--seconds", type=float, default=200)
    options = parser.parse_args()
    print(json.dumps(_attempt(lambda: measured(options))))


if __name__ == "__main__":
    main()
