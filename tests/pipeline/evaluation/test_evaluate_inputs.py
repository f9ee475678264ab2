"""The inputs of an evaluation: refused where they do not belong together, and told by what they hold, not where."""

import dataclasses
import hashlib
import shutil

import numpy as np
import pytest

from rdpm.pipeline.evaluation import inputs
from rdpm.pipeline.evaluation.evaluate import evaluate
from rdpm.pipeline.evaluation.stage import run as run_stage
from tests.pipeline.evaluation.made_run import DRAWN, class_pixels

pytestmark = pytest.mark.usefixtures("quick")


def test_inputs_that_do_not_belong_together_are_refused(run):
    pixels, labels = class_pixels(50, 50 + DRAWN)
    foreign = run.samples("foreign", pixels, labels, tokenizer_digest="f" * 64)
    with pytest.raises(ValueError, match="were decoded by tokenizer ffffffffffff, not"):
        evaluate(run.config(samples=foreign))
    renamed = run.samples("renamed", pixels, labels, classes=("a", "b", "c"))
    with pytest.raises(ValueError, match=r"classes \['a', 'b', 'c'\]"):
        evaluate(run.config(samples=renamed))
    few = run.samples("few", *class_pixels(50, 54))
    with pytest.raises(ValueError, match="has 4 images, but a draw needs 5; sample more"):
        evaluate(run.config(samples=few))
    with pytest.raises(ValueError, match="has no finished record"):
        evaluate(run.config(timed=(f"{run.root}/nowhere",)))
    with pytest.raises(ValueError, match="inception_weights 'nowhere' does not exist"):
        evaluate(run.config(extractor="inception", inception_weights="nowhere"))
    with pytest.raises(ValueError, match="LPIPS needs images of 16 pixels or more, not 8"):
        evaluate(run.config(perceptual="torchvision"))
    large = np.zeros((30, 16, 16, 3), np.uint8)
    np.savez(f"{run.root}/large.npz", large)
    with pytest.raises(ValueError, match=r"have different sizes, \[8, 16\] pixels"):
        evaluate(run.config(samples=f"{run.root}/large.npz"))


def test_a_reference_of_other_classes_is_refused(run, tmp_path):
    shutil.copytree(f"{run.root}/train", tmp_path / "two")
    shutil.rmtree(tmp_path / "two" / "0")
    with pytest.raises(ValueError, match=r"two' has classes \['1', '<b>&2'\]"):
        evaluate(run.config(reference=f"{tmp_path}/two"))


def test_held_out_images_that_samples_are_compared_with_are_refused(run):
    for given in ({"images": f"{run.root}/train"}, {"reference": f"{run.root}/val"}):
        with pytest.raises(ValueError, match="are the same; give held-out images"):
            evaluate(run.config(**given))


def test_sets_of_no_or_one_image_are_named(run, tmp_path):
    broken = tmp_path / "broken" / "0" / "a.png"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no picture")
    shutil.copy(broken, broken.with_name("b.png"))
    np.savez(f"{tmp_path}/unlabelled.npz", np.zeros((5, 8, 8, 3), np.uint8))
    given = run.config(tokenizer="", images="", train_images="", extractor="none", reference=f"{tmp_path}/broken")
    given = dataclasses.replace(given, samples=f"{tmp_path}/unlabelled.npz")
    with pytest.raises(ValueError, match=r"broken' holds no image that can be decoded \(2 listed\)"):
        evaluate(dataclasses.replace(given, out=f"{tmp_path}/metrics.json"))
    broken.unlink()
    with pytest.raises(ValueError, match="broken' holds one image; give two or more"):
        evaluate(dataclasses.replace(given, out=f"{tmp_path}/metrics.json"))


def test_impossible_settings_are_refused(run):
    for changes, message in (
        ({"draws": -1}, "draws is -1; use 0 or more"),
        ({"seed": -1}, "seed is -1; use 0 or more"),
        ({"batch": 251}, "batch is 251; use 250 or less"),
        ({"manifold_images": 3}, "manifold_images is 3; use 4 or more"),
        ({"samples": "", "tokenizer": ""}, "samples and tokenizer are both empty"),
        ({"train_images": ""}, "samples need something to be compared with"),
        ({"train_images": "", "reference": "x"}, "extractor classifier is trained on train_images"),
        ({"samples": "", "images": ""}, "a tokenizer needs images to reconstruct"),
    ):
        with pytest.raises(ValueError, match=message):
            run.config(**changes)


def test_inputs_that_have_moved_are_the_same_inputs(run, tmp_path, capsys):
    config = run.config(out=f"{tmp_path}/metrics.json")
    run_stage(config)
    shutil.copytree(f"{run.root}/val", tmp_path / "moved")
    run_stage(dataclasses.replace(config, images=f"{tmp_path}/moved"))
    assert "already there" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "moved" / "1")
    with pytest.raises(ValueError, match=r"made with other settings \(images_digest"):
        run_stage(dataclasses.replace(config, images=f"{tmp_path}/moved"))


def test_the_record_holds_the_digest_of_a_file_that_extracts(run, tmp_path):
    path = tmp_path / "judge.pt2"
    path.write_bytes(b"a program")
    digests = inputs.input_digests(run.config(extractor=str(path)))
    assert digests["extractor_digest"] == hashlib.sha256(b"a program").hexdigest()
