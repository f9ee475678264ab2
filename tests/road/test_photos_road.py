"""The road of `make demo-photos`: its own configs, with few crops and few steps."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rdpm.pipeline.images.photos import CLASSES

ROOT = Path(__file__).parents[2]
FEW_STEPS = ["steps=8", "log_every=4", "checkpoint_every=4"]


@pytest.mark.long
def test_the_photographs_go_the_whole_road(tmp_path: Path) -> None:
    data, tokenizer, store, generator, calibrated, samples, metrics = (
        f"{tmp_path}/{name}"
        for name in ("data", "tokenizer", "store", "generator", "calibrated", "samples", "metrics.json")
    )
    images = [f"images={data}/val", f"train_images={data}/train"]
    made = [f"tokenizer={tokenizer}", f"samples={samples}"]
    steps = {
        ("prepare", "photos", "data"): ["per_class=24", "held_out_per_class=8", f"out={data}"],
        ("train-tokenizer", "tokenizer"): [
            f"images={data}/train", f"validation={data}/val", "validate_every=8", f"out={tokenizer}", *FEW_STEPS,
            "loss.discriminator_start=4",
        ],
        ("tokenize", "store"): [f"images={data}/train", f"tokenizer={tokenizer}", f"out={store}"],
        ("train-generator", "generator"): [
            f"stores=[{store}]", f"tokenizer={tokenizer}", f"out={generator}", *FEW_STEPS,
        ],
        ("calibrate", "calibration"): [
            f"generator={generator}", f"tokenizer={tokenizer}", f"store={store}", f"out={calibrated}",
        ],
        ("sample", "samples"): [
            f"generator={calibrated}", f"tokenizer={tokenizer}", f"out={samples}", "per_class=10",
        ],
        ("evaluate", "evaluation"): [*images, *made, f"out={metrics}", f"timed=[{data},{samples}]"],
        ("report", "report"): [
            *images, *made, f"metrics={metrics}", f"generator={generator}", f"store={store}",
            f"calibrated={calibrated}", f"out={tmp_path}/r.html",
        ],
    }  # fmt: skip
    for (*job, name), arguments in steps.items():
        command = [sys.executable, "-m", "rdpm", *job, f"configs/photos/{name}.yaml", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found = json.loads(Path(metrics).read_text())
    assert 5 < found["tokenizer"]["psnr"] < 60
    assert 0 <= found["generator"]["class_accuracy"] <= 1
    assert found["protocol"]["held_out"]["images"] == 8 * len(CLASSES)
    with np.load(f"{samples}/samples.npz") as archive:
        assert archive["arr_0"].shape == (10 * len(CLASSES), 32, 32, 3)
        assert not (archive["arr_0"] == archive["arr_0"][..., :1]).all()  # in colour
    assert (tmp_path / "r.html").stat().st_size > 10_000
