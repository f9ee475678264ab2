"""What the deterministic mode of a training costs, and whether its bits are the same in every run.

    python -m benchmarks.determinism [--depth 12] [--batch 64] [--steps 12] [--attention sdpa] [--compile]

Four processes train a generator from the same weights on the same batch, two of them in the deterministic mode, in
turn. Prints price (seconds of a step with the mode over those without), bit_exact (both runs with the mode end with the
same weights) and bit_exact_without (so do both runs without it). It is plain torch with AdamW and bfloat16 autocast.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

from rdpm.models.generator import Generator, GeneratorConfig, code_loss
from rdpm.pipeline.training.determinism import deterministic_operations


def trained(options: argparse.Namespace) -> dict[str, Any]:
    """Train in this process: seconds of the median step after the first third, and a digest of the weights."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with deterministic_operations(options.child == "on"):
        torch.manual_seed(0)
        model = Generator(GeneratorConfig(depth=options.depth, attention=options.attention))
        for weight in model.parameters():  # else blocks start as identities, and attention has no gradient
            weight.data.add_(0.02 * torch.randn_like(weight))
        config, batch = model.config, options.batch
        shape = (batch, config.code_dim, config.grid, config.grid)
        given = (
            torch.randn(shape),
            torch.randint(0, config.num_classes, (batch,)),
            torch.randint(1, config.num_steps + 1, (batch,)),
            torch.randn(shape),
        )
        codes = torch.randint(0, config.codebook_size, (batch, config.grid, config.grid)).to(device)
        model, given = model.to(device), tuple(value.to(device) for value in given)
        if options.compile:
            model.compile(fullgraph=True, dynamic=False)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=device.type == "cuda")
        seconds = []
        for _ in range(options.steps):
            start = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16):
                loss = code_loss(model(*given), codes).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        digest = hashlib.sha256()
        for weight in model.parameters():
            digest.update(weight.detach().cpu().numpy().tobytes())
    return {"seconds": statistics.median(seconds[options.steps // 3 :]), "digest": digest.hexdigest()}


def compared(arguments: list[str]) -> dict[str, Any]:
    """Both kinds of runs, in turn, in processes of their own."""
    runs: dict[str, list[dict[str, Any]]] = {"off": [], "on": []}
    for child in ("off", "on", "off", "on"):
        command = [sys.executable, "-m", "benchmarks.determinism", *arguments, "--child", child]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        runs[child].append(json.loads(done.stdout.splitlines()[-1]))
    off, on = (min(run["seconds"] for run in runs[child]) for child in ("off", "on"))
    same = {child: len({run["digest"] for run in runs[child]}) == 1 for child in runs}
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "price": on / off,
        "bit_exact": same["on"],
        "bit_exact_without": same["off"],
        "same_as_without": runs["on"][0]["digest"] == runs["off"][0]["digest"],
        "seconds_per_step": on,
    }


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--attention", default="sdpa", help="sdpa, math or flash_attn")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--child", choices=("on", "off"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    print(json.dumps(trained(options) if options.child else compared(sys.argv[1:])))


if __name__ == "__main__":
    main()
