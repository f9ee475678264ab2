"""rdpm prepare: the real images of installed packages as class folders, whole and after a kill."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdpm.jobs.cli import main
from rdpm.pipeline.foundation.records import read_record
from rdpm.pipeline.images.photos import CLASSES, load_pictures

FEW = ["per_class=12", "held_out_per_class=4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Photos, prepared without interruption."""
    out = tmp_path_factory.mktemp("photos") / "data"
    assert main(["prepare", "photos", f"out={out}", *FEW]) == 0
    return out


def test_photos_are_windows_of_the_pictures_at_the_places_that_they_are_called_by(folder):
    pictures = load_pictures()
    for split, count in (("train", 12), ("val", 4)):
        assert sorted(path.name for path in (folder / split).iterdir()) == sorted(CLASSES)
        for name in CLASSES:
            paths = list((folder / split / name).iterdir())
            assert len(paths) == count
            for path in paths:
                top, left = map(int, re.fullmatch(r"(\d{4})-(\d{4})\.png", path.name).groups())
                with Image.open(path) as picture:
                    pixels = np.asarray(picture)
                np.testing.assert_array_equal(pixels, pictures[name][top : top + 32, left : left + 32])


def test_training_and_held_out_photos_have_no_pixel_in_common(folder):
    for name in CLASSES:
        places = {
            split: np.array([path.stem.split("-") for path in (folder / split / name).iterdir()], int)
            for split in ("train", "val")
        }
        between = np.abs(places["train"][:, None] - places["val"][None])  # rows and columns from place to place
        assert (between.max(2) >= 32).all(), name


def test_photos_are_the_same_bytes_again_and_a_finished_set_is_left_alone(folder, tmp_path, tree):
    clean = tree(folder)
    assert main(["prepare", "photos", f"out={tmp_path}/again", *FEW]) == 0
    assert tree(tmp_path / "again") == clean
    assert main(["prepare", "photos", f"out={folder}", *FEW]) == 0
    assert tree(folder) == clean
    record = read_record(str(folder))
    assert record.result == {"train": 12 * len(CLASSES), "val": 4 * len(CLASSES)}
    assert list(record.inputs) == ["pictures"]


@pytest.mark.slow
def test_a_killed_prepare_continues_to_the_same_bytes(python, repository, folder, tmp_path, tree):
    command = [*python, "-m", "rdpm", "prepare", "photos", f"out={tmp_path}/data", *FEW]
    process = subprocess.Popen(command, cwd=repository, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 60
    while len(list(tmp_path.rglob("*.png"))) < 20:
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(list(tmp_path.rglob("*.png"))) < 16 * len(CLASSES)
    assert main(["prepare", "photos", f"out={tmp_path}/data", *FEW]) == 0
    assert tree(tmp_path / "data") == tree(folder)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["photos", "image_size=4"], "image_size is 4"),
        (["photos", "per_class=0"], "per_class is 0"),
        (["photos", "held_out_per_class=-1"], "held_out_per_class is -1"),
        (["photos", "held_out=3"], "held_out"),
        (["photos", "image_size=256"], "image_size is 256, and astronaut has 512 x 512 pixels"),
        (["photos", "held_out_per_class=100000"], "for val, and 100000 are asked for"),
        (["letters"], "'letters' is unknown; use: rdpm prepare digits, or: rdpm prepare photos"),
        ([], "'' is unknown"),
    ],
)
def test_photos_that_cannot_be_are_refused_in_one_sentence_and_leave_nothing(capsys, tmp_path, arguments, named):
    given = [*arguments, f"out={tmp_path}/data"] if arguments else []
    assert main(["prepare", *given]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 1
    assert named in printed[0]
    assert not list(tmp_path.iterdir())


def test_another_set_in_the_same_folder_is_refused(folder, capsys, tree):
    before = tree(folder)
    for arguments in (["digits"], ["photos", *FEW, "seed=1"]):
        assert main(["prepare", *arguments, f"out={folder}"]) == 2
        assert "was made with other settings" in capsys.readouterr().err
    assert tree(folder) == before
