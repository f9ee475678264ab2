"""Drawing images takes a light install: without Ray, DeepSpeed and what else only the pipeline needs."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rdpm.pipeline.foundation.extras import extra_for

CPU_TORCH = "torch==2.13.0+cpu"  # by its full version, lest a build for CUDA comes in its place
HEAVY = {"deepspeed", "lpips", "matplotlib", "pyarrow", "ray", "scipy", "skimage", "sklearn", "torchvision", "zarr"}
DRAW = f"""
import sys
import rdpm
model = rdpm.RDPM.from_pretrained(sys.argv[1], device="cpu")
images = model.sample([0, 1, 1], seed=7, guidance=0.5)
codes = model.encode(images, seed=7)
model.decode(codes)
model.vary(images, [1, 0, 0], step=2)
print(sorted(set({HEAVY}) & set(sys.modules)), codes.tolist())
"""


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, exports) -> str:
    """A folder with a generator and its tokenizer."""
    folder = tmp_path_factory.mktemp("run")
    exports.generator(str(folder / "generator"), exports.tokenizer(str(folder / "tokenizer")))
    return str(folder)


def python(*arguments: str, executable: str = sys.executable, folder: str | Path = ".") -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # which is part of what an installation takes
    return subprocess.run(
        [executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_drawing_and_editing_load_nothing_of_the_pipeline(run_folder, repository):
    done = python("-c", DRAW, run_folder, folder=repository)
    assert done.stdout.startswith("[] "), done


def test_a_command_without_its_extra_says_how_to_install_it(repository):
    code = "import sys; sys.modules['zarr'] = None; from rdpm.jobs.cli import main; sys.exit(main(['verify', 'store']))"
    done = python("-c", code, folder=repository)
    wanted = "rdpm verify: zarr is not installed; the extra pipeline brings it: pip install '.[pipeline]'\n"
    assert (done.returncode, done.stderr) == (2, wanted)


def test_a_public_name_without_its_extra_says_so_too(repository):
    done = python("-c", "import sys; sys.modules['zarr'] = None; from rdpm import open_store", folder=repository)
    assert done.stderr.endswith(
        "ModuleNotFoundError: zarr is not installed; the extra pipeline brings it: pip install '.[pipeline]'\n"
    )


def test_every_package_of_an_extra_is_known_by_the_name_that_is_imported(repository):
    extras = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = [re.match(r"[\w-]+", line)[0] for line in extras["pipeline"]]
    known = {"scikit-learn": "sklearn", "scikit-image": "skimage"}
    modules = [known.get(name, name.replace("-", "_")) for name in names]
    assert all(importlib.util.find_spec(module) for module in modules)
    assert all("'.[pipeline]'" in str(extra_for(ModuleNotFoundError(name=f"{module}.x"))) for module in modules)
    assert extra_for(ModuleNotFoundError(name="rdpm.models.no")) is None
    assert extra_for(ModuleNotFoundError(name="torch")) is None


@pytest.fixture(scope="module")
def light_python(tmp_path_factory, repository) -> str:
    """The Python of an environment with the light install alone, or a skip where no PyTorch for CPUs can be had."""
    place = tmp_path_factory.mktemp("light")
    offered = python("-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet", CPU_TORCH)
    if offered.returncode:
        pytest.skip(f"pip finds no {CPU_TORCH} for this Python")
    assert python("-m", "venv", str(place)).returncode == 0
    light = str(place / "bin" / "python")
    for package in (CPU_TORCH, str(repository)):
        done = python("-m", "pip", "install", "--quiet", "--no-compile", package, executable=light, folder=place)
        assert done.returncode == 0, done.stderr
    return light


@pytest.mark.long
def test_a_light_install_draws_and_takes_less_than_a_gigabyte(light_python, run_folder, repository):
    place = Path(light_python).parents[1]
    installed = python("-m", "pip", "list", "--format=json", executable=light_python)
    names = {package["name"].lower() for package in json.loads(installed.stdout)}
    assert "rdpm" in names
    assert not {"ray", "deepspeed", "zarr", "pyarrow", "torchvision", "scipy"} & names

    drawn = python("-c", DRAW, run_folder, executable=light_python, folder=place)
    assert drawn.stdout.startswith("[] "), drawn
    assert drawn.stdout == python("-c", DRAW, run_folder, folder=repository).stdout

    for command, extra in (("sample x.yaml", "pipeline"), ("export run folder", "onnx"), ("serve run", "app")):
        refused = python("-m", "rdpm", *command.split(), executable=light_python, folder=place)
        assert refused.returncode == 2
        assert re.fullmatch(rf"rdpm \w+: .* is not installed; .*pip install '\.\[{extra}\]'\n", refused.stderr)
    asked = python("-m", "pip", "install", "--dry-run", "rdpm[s3]", executable=light_python, folder=place)
    assert "s3fs" in asked.stdout.splitlines()[-1]

    size = sum(path.lstat().st_blocks * 512 for path in place.rglob("*"))  # as du counts, byte code of use included
    assert size < 1e9, f"{size / 1e6:.0f} MB"
