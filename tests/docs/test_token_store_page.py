"""docs/token-store.md: its code runs as printed, without rdpm, and its tables and its layout are right."""

import math
import re
import shutil
import subprocess

import numpy as np
import pytest

from rdpm.jobs.cli import main
from rdpm.pipeline.foundation import files
from rdpm.pipeline.stores.layout import fill_value
from rdpm.pipeline.stores.writer import leave_environment, publish, start_store, write_shard
from rdpm.storage_schemas.manifest import Plan
from rdpm.storage_schemas.tokens import token_arrays


@pytest.fixture(scope="module")
def page(repository) -> str:
    return (repository / "docs" / "token-store.md").read_text()


@pytest.mark.slow
def test_the_code_runs_without_rdpm(page, tmp_path, stores, python):
    stores.build(str(tmp_path / "store"), rejected=(3, 8, 19))
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 4
    ours = "import sys\nassert 'rdpm' not in sys.modules\n"
    checks = "assert codes.row.size == 17 and first.max() < 16 and len(counts) == 4\n"
    program = "\n".join([*blocks, checks, ours])
    done = subprocess.run(
        [*python, "-W", "ignore", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_commands_run(page, repository, tmp_path, monkeypatch, capsys):
    """On the first release's store and tokenizer, with the config of the job that made the store."""
    old = repository / "tests" / "fixtures" / "v1"
    for name in ("store", "tokenizer"):
        shutil.copytree(old / name, tmp_path / name)
    shutil.copy(old / "configs" / "store.yaml", tmp_path / "store.yaml")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL)
    for line in block.splitlines():
        program, *arguments = line.split()
        assert (program, main(arguments)) == ("rdpm", 0), capsys.readouterr().err
        assert "is undamaged" in capsys.readouterr().out
    assert len(block.splitlines()) == 4


def test_the_table_of_arrays_is_what_is_written(page):
    for spec in token_arrays(10, (32, 16, 16), True, True):
        assert f"| `{spec.name}` | {spec.dtype} | {', '.join(('row', *spec.dims))} |" in page
    assert (fill_value("uint16"), fill_value("int32"), fill_value("uint64")) == (65535, -1, 2**64 - 1)
    assert math.isnan(fill_value("float16"))


def test_the_layout_names_every_file_of_a_store(page, tmp_path, stores):
    layout = re.search(r"```\nSTORE/\n(.*?)```", page, flags=re.DOTALL).group(1)
    named = {line.split()[0] for line in layout.splitlines()}
    stores.build(str(tmp_path / "store"))
    leave_environment(str(tmp_path / "store"))
    written = {name for name, _ in files.list_files(str(tmp_path / "store"))}
    arrays = ("codes", "noise_seed", "label", "accumulated", "latents")
    for name in written:
        general = re.sub(r"^(noise_seed|label|accumulated|latents)", "codes", name)
        general = re.sub(r"^codes/c/\d.*", "codes/c/0/0/0/0", general)
        general = re.sub(r"^(index|commits)/\d{5}", r"\1/00000", general)
        general = re.sub(r"^environments/.*", "environments/*.json", general)
        assert general in named, name
    assert all(array in page for array in arrays)
    assert {name for name in named if "/" not in name} <= {*written, "..."}


def test_the_sizes_are_those_of_a_store(page, tmp_path, stores):
    plan = Plan("tokens", 1024, 512, 256, token_arrays(10, (32, 16, 16), False, False), stores.IDENTITY)
    draw = np.random.default_rng(0)
    start_store(str(tmp_path), plan)
    for shard in range(2):
        columns = {
            "codes": draw.integers(0, 4096, (512, 10, 16, 16)).astype(np.uint16),
            "noise_seed": draw.integers(0, 2**64, 512, np.uint64),
            "label": draw.integers(0, 1000, 512).astype(np.int32),
        }
        commit = write_shard(str(tmp_path), plan, shard, columns, {"row": np.arange(512)})
        assert commit.objects["codes"].size / 512 == pytest.approx(3852, abs=2)
    publish(str(tmp_path), plan)
    sizes = dict(files.list_files(str(tmp_path)))
    assert sizes["commits/00000.json"] == pytest.approx(600, rel=0.2)
    line = next(line for line in (tmp_path / "manifest.json").read_text().splitlines(True) if '"00000"' in line)
    assert len(line) == pytest.approx(77, abs=5)
    assert "| codes, 3,840 in theory | 3,852 |" in page
