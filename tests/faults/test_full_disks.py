"""Every writer on a disk that is too small ends with one sentence, leaves nothing half-written, and goes on after."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.lease import held
from rdpm.pipeline.sampling.formats import NAMES, write_files
from rdpm.pipeline.stores.reader import Store
from rdpm.pipeline.training.log import TrainingLog
from tests.faults.campaign.tally import refusal
from tests.faults.mounts import small_disk
from tests.pipeline.sampling.conftest import _config_of, _draw_here
from tests.pipeline.training.trainings import train

FULL = "make room there and run the command again"
Write = Callable[[Path], object]


def one_file(folder: Path) -> None:
    with files.atomic_file(str(folder / "deep" / "file")) as file:
        for _ in range(30):
            file.write(bytes(10_000))


def one_folder(folder: Path) -> None:
    with files.atomic_folder(str(folder / "png")) as made:
        for number in range(30):
            files.write_bytes(files.join(made, f"{number % 3}", f"{number}"), bytes(10_000))


def copies(folder: Path) -> None:
    files.write_bytes(str(folder / "source"), bytes(100_000))
    os.makedirs(folder / "elsewhere", exist_ok=True)
    for number in range(40):
        files.link(str(folder / "source"), str(folder / f"linked-{number}"))
        files.create_bytes(str(folder / f"made-{number}"), bytes(5000))


@pytest.fixture(scope="module")
def writers(stores, exports, tmp_path_factory) -> dict[str, Write]:
    """What writes into a folder that does not exist yet, by name."""
    own = tmp_path_factory.mktemp("writers")
    exports.generator(f"{own}/run/generator", exports.tokenizer(f"{own}/run/tokenizer"))
    drawn = _draw_here(_config_of(f"{own}/run", f"{own}/drawn"))

    def samples(folder: Path) -> None:
        with held(f"{own}/lease", "sample") as lease:
            write_files(Store(str(folder), drawn.manifest), tuple(NAMES), lease)

    def samples_there(folder: Path) -> None:
        for path, data in content(Path(drawn.url)).items():
            files.write_bytes(str(folder / path), data)
        samples(folder)

    return {
        "file": one_file,
        "folder": one_folder,
        "copies": copies,
        "store": lambda folder: stores.build(str(folder), stores.plan(rows=64)),
        "export": lambda folder: exports.tokenizer(str(folder)),
        "samples": samples_there,
    }


def content(folder: Path) -> dict[str, bytes]:
    """All files, hidden ones too, except those that say where something was made."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if "environments" not in path.parts}


@pytest.mark.parametrize("name", ["file", "folder", "copies", "store", "export", "samples"])
def test_a_writer_names_the_full_disk_and_a_second_run_ends_in_the_same_bytes(writers, name, tmp_path):
    enough = tmp_path / "enough"
    writers[name](enough)
    expected = content(enough)
    sizes = {path.stat().st_ino: path.stat().st_size // 4096 + 2 for path in enough.rglob("*")}
    size = 4 * sum(sizes.values())
    refused = 0
    with small_disk(tmp_path / "disk", 4) as disk:
        for share in (0.05, 0.1, 0.2, 0.4, 0.8):
            disk.resize(max(8, int(size * share)))
            said = refusal(lambda: writers[name](disk.folder / "out"))
            refused += bool(said)
            assert not said or f"the disk at {disk.folder} is full (" in said
            assert not said or FULL in said
            written = content(disk.folder / "out") if (disk.folder / "out").exists() else {}
            assert all(expected.get(path, data) == data for path, data in written.items())
            assert not any(path.endswith((".tmp", ".old")) for path in written)
        disk.resize(3 * size)
        writers[name](disk.folder / "out")
        assert content(disk.folder / "out") == expected
    assert refused > 1


@pytest.mark.slow
def test_a_job_on_a_full_disk_ends_with_one_sentence_and_code_2(tmp_path, python, repository):
    with small_disk(tmp_path / "disk", 300) as disk:
        command = [*python, "-m", "rdpm", "prepare", "digits", f"out={disk.folder}/digits", "image_size=8"]
        full = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
        assert full.returncode == 2
        assert full.stderr.startswith(f"rdpm prepare: cannot write {disk.folder}/digits/")
        assert FULL in full.stderr
        assert full.stderr.count("\n") == 1
        disk.resize(30_000)
        again = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
        assert (again.returncode, again.stderr) == (0, "")


def test_no_more_files_is_told_from_no_more_bytes(tmp_path):
    with small_disk(tmp_path / "disk", 1000) as disk:
        subprocess.run(["mount", "-o", "remount,nr_inodes=10", disk.folder], check=True)
        said = refusal(lambda: [files.write_bytes(str(disk.folder / f"{number}"), b"x") for number in range(20)])
        assert f"the disk at {disk.folder} can hold no more files; {FULL}" in said


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of TensorBoard's thread
def test_a_log_on_a_full_disk_ends_with_one_sentence_and_stays_readable(tmp_path):
    with small_disk(tmp_path / "disk", 64) as disk:
        log = TrainingLog(f"{disk.folder}/out", active=True, resume_step=0)
        assert FULL in refusal(lambda: [log.write(step, loss=1.0 / step) for step in range(1, 100_000)])
        assert FULL in refusal(log.close)
        disk.resize(1000)
        log = TrainingLog(f"{disk.folder}/out", active=True, resume_step=10)
        log.write(11, loss=0.5)
        log.close()
        assert (disk.folder / "out" / "log.jsonl").read_text().count("\n") == 11


@pytest.mark.long
@pytest.mark.parametrize("kind", ["tokenizer", "generator"])
def test_a_training_on_a_full_disk_ends_with_one_sentence_and_goes_on(kind, tmp_path, exports, stores, digit_folder):
    card = exports.tokenizer(str(tmp_path / "tokenizer"))
    stores.build(str(tmp_path / "store"), stores.plan(rows=21, **exports.identity(card)))
    (tmp_path / "images").symlink_to(digit_folder)
    options = ("steps=6", "checkpoint_every=2")
    train(None, kind, tmp_path, tmp_path / "enough", *options)
    exported = content(tmp_path / "enough" / ("tokenizer" if kind == "tokenizer" else "generator"))
    size = sum(path.stat().st_size for path in (tmp_path / "enough").rglob("*") if path.is_file()) // 1024
    refused = 0
    with small_disk(tmp_path / "disk", 4) as disk:
        for share in (0.1, 0.3, 0.5, 0.7, 0.9):
            disk.resize(int(size * share))
            said = refusal(lambda: train(None, kind, tmp_path, disk.folder / "out", *options))
            refused += bool(said)
            assert not said or FULL in said
        disk.resize(4 * size)
        train(None, kind, tmp_path, disk.folder / "out", *options)
        assert content(disk.folder / "out" / ("tokenizer" if kind == "tokenizer" else "generator")) == exported
    assert refused > 1
