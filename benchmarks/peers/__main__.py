"""A training step and the sampling of images of DiT, SiT, VAR, LlamaGen and MAR, from their own code, beside ours.

    python -m benchmarks.peers CHECKOUTS [--python PYTHON] [--batch 1] [--precision bf16] [--seconds 200]
                               [--only NAME ...] [--noncommercial] [--out runs/peers] [--again]

CHECKOUTS holds the repositories DiT, SiT, VAR, LlamaGen and mar, as `git clone` names them; PYTHON is the interpreter
of an environment with what they import (torch, torchvision, timm, diffusers, torchdiffeq, huggingface_hub, scipy,
tqdm). Every model runs in two processes of its own, one that trains and one that samples, in its own folder, with
random weights. A model is left out, and named with the reason, where its checkout or licence is missing, and where its
code raises an error. DiT may only be used non-commercially (CC BY-NC 4.0): it runs with --noncommercial, by which you
say that your use is such. Prints a table; results are files in OUT, and finished ones are not run again.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NAMES = (
    *("DiT-XL/2", "SiT-XL/2 (SDE)", "SiT-XL/2 (ODE)", "VAR-d16", "VAR-d20", "LlamaGen-B", "LlamaGen-L", "LlamaGen-XL"),
    *("MAR-B", "MAR-L", "RDPM d12", "RDPM d16", "RDPM d20"),
)
_FOLDERS = {"DiT": "DiT", "SiT": "SiT", "VAR": "VAR", "LlamaGen": "LlamaGen", "MAR": "mar"}
_LICENCES = {"MIT License": "MIT", "Attribution-NonCommercial 4.0 International": "CC BY-NC 4.0"}
_MAY_RUN = {"MIT": True, "CC BY-NC 4.0": False}  # for any use, or only for a non-commercial one


@dataclass(frozen=True)
class Home:
    """Where a model's code lies, and what it is."""

    folder: Path
    python: str
    licence: str
    version: str


def home(name: str, checkouts: Path, python: str) -> Home:
    """Raises ValueError where there is no checkout, or no licence that we know."""
    if name.startswith("RDPM"):
        return Home(ROOT, sys.executable, "Apache-2.0", _version(ROOT))
    folder = checkouts / _FOLDERS[re.split(r"[- ]", name)[0]]
    if not folder.is_dir():
        raise ValueError(f"there is no checkout {folder.name}")
    texts = [path.read_text() for path in folder.glob("LICENSE*")]
    found = [short for words, short in _LICENCES.items() if any(words in text[:500] for text in texts)]
    if not found:
        raise ValueError(f"the licence in {folder.name} is none that we know, so it is not run")
    return Home(folder, python, found[0], _version(folder))


def _version(folder: Path) -> str:
    """The commit of a checkout; of a folder without .git, a digest of its Python files."""
    if (folder / ".git").exists():
        command = ["git", "-C", str(folder), "rev-parse", "--short=10", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return f"sources {digest.hexdigest()[:8]}"


def measured(name: str, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """The result of one process, or the reason why there is none under "error"."""
    try:
        where = home(name, options.checkouts, options.python)
    except ValueError as error:
        return {"error": str(error)}
    about = {"licence": where.licence, "version": where.version}
    if not _MAY_RUN.get(where.licence, True) and not options.noncommercial:
        return {"error": f"{where.licence} allows only non-commercial use; say so with --noncommercial", **about}
    settings = [f"--{key}={getattr(options, key)}" for key in ("batch", "device", "precision", "seconds")]
    command = [where.python, "-P", str(Path(__file__).with_name("measure.py")), name, kind, *settings]
    done = subprocess.run(
        command,
        cwd=where.folder,
        env={**os.environ, "PYTHONPATH": str(where.folder)},
        stdout=subprocess.PIPE,
        text=True,
    )
    lines = done.stdout.splitlines()
    result = json.loads(lines[-1]) if lines else {"error": f"the process ended with exit code {done.returncode}"}
    return {**result, **about}


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: one row per model, its training step and its sampling side by side."""
    heads = ["", "parameters", "training, images/s", "GFLOP/image", "GiB"]
    heads += ["sampling, images/s", "GFLOP/image", "forwards", "GiB", "licence, version"]
    lines = [heads, ["---"] * len(heads)]
    for name in dict.fromkeys(result["name"] for result in results):
        kinds = {result["kind"]: result for result in results if result["name"] == name}
        train, sample = kinds.get("train", {}), kinds.get("sample", {})
        size = train.get("parameters")
        row = [name, f"{size / 1e6:,.1f} M" if size else ""]
        row += _cells(train, ("images_per_s", "gflop_per_image", "peak_gib"))
        row += _cells(sample, ("images_per_s", "gflop_per_image", "forwards", "peak_gib"))
        any_of = sample or train
        lines.append([*row, f"{any_of.get('licence', '')}, {any_of.get('version', '')}".strip(", ")])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(result: dict[str, Any], keys: tuple[str, ...]) -> list[str]:
    if "error" in result:
        return [f"*left out: {result['error']}*".replace("|", " "), *[""] * (len(keys) - 1)]
    about = "about " if result.get("extrapolated") else ""
    return [(about if key == "images_per_s" else "") + _shown(result.get(key)) for key in keys]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(str(count) if len(value) == 1 else f"{count:,} of the {name}" for name, count in value.items())
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> None:
    """Measure what is asked for, and print the table of all results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", type=Path)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cuda" if _cuda() else "cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--seconds", type=float, default=200, help="a sampler that takes longer is extrapolated")
    parser.add_argument("--only", nargs="+", default=[], help="names, or what they begin with")
    parser.add_argument("--kinds", nargs="+", choices=("train", "sample"), default=("train", "sample"))
    parser.add_argument("--noncommercial", action="store_true")
    parser.add_argument("--again", action="store_true", help="measure again what is there")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "peers")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results = []
    for name in NAMES:
        for kind in ("train", "sample"):
            if kind == "train" and name.endswith("(ODE)"):
                continue  # the same step as with the other solver
            stem = f"{name}-{kind}-{options.device}-{options.precision}-{options.batch}"
            path = options.out / f"{re.sub(r'[^A-Za-z0-9-]+', '-', stem)}.json"
            wanted = kind in options.kinds and (not options.only or any(name.startswith(each) for each in options.only))
            if wanted and (options.again or not path.exists()):
                print(f"{name}: {kind}", file=sys.stderr, flush=True)
                path.write_text(json.dumps({"name": name, "kind": kind, **measured(name, kind, options)}))
            if path.exists():
                results.append(json.loads(path.read_text()))
    print(table(results))


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
