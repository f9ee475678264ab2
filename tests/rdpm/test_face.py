"""The package that users import."""

import subprocess
import sys
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

import pytest

import rdpm


def test_every_public_name_is_there_documented_and_listed():
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
    for name in rdpm.__all__:
        assert getattr(rdpm, name) is not None
        if name != "__version__":
            assert getattr(rdpm, name).__doc__, name
        assert f"`{name}`" in page, f"{name} is not in docs/python.md"
    assert dir(rdpm) == sorted(rdpm.__all__)


def test_the_version_is_that_of_the_installed_package():
    (installed,) = distributions(name="rdpm", path=[sysconfig.get_path("purelib")])
    assert rdpm.__version__ == installed.version


def test_an_unknown_name_is_refused_with_those_that_exist():
    with pytest.raises(AttributeError, match=r"no attribute 'sampel'; it has RDPM, "):
        _ = rdpm.sampel


def test_importing_it_loads_nothing_heavy(repository):
    code = "import rdpm, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "deepspeed", "zarr", "pyarrow", "numpy"} & set(done.stdout.split())


@pytest.mark.slow
def test_it_is_found_from_a_folder_with_packages_of_the_same_names(tmp_path):
    """A user's own models.py and pipeline/ beside their script do not get in the way, nor does a clone called rdpm."""
    (tmp_path / "rdpm" / "docs").mkdir(parents=True)
    (tmp_path / "models.py").write_text("raise SystemExit('the wrong models')")
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").write_text("raise SystemExit('the wrong pipeline')")
    code = "from rdpm import SamplerConfig, open_store; print(SamplerConfig())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_source_folders_are_links_into_the_package(repository):
    for name in ("jobs", "models", "pipeline", "storage_schemas"):
        assert (repository / "rdpm" / name).resolve() == repository / name
