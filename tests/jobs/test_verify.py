"""rdpm verify: its options, in several processes, against the tokenizer, and with what late attempts left."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from rdpm.jobs.cli import main
from rdpm.pipeline.stores.reader import open_store
from rdpm.pipeline.stores.writer import publish, start_store, write_shard

V1 = Path(__file__).parents[1] / "fixtures" / "v1"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.long)])
def test_codes_are_compared_with_the_tokenizer_in_every_process(tmp_path, capsys, processes):
    good = open_store(str(V1 / "store"))
    assert main(["verify", good.url, f"tokenizer={V1}/tokenizer"]) == 0
    assert f"accumulated is what the codes give in {len(good)} rows" in capsys.readouterr().out
    plan, url = good.manifest.plan, str(tmp_path / "wrong")
    start_store(url, plan)
    for shard in range(plan.num_shards):
        columns = good.shard(shard, tuple(good.specs))
        columns["accumulated"] = np.roll(columns["accumulated"], 1, axis=0)
        write_shard(url, plan, shard, columns, good.shard_index(shard).to_pydict(), good.commit(shard).rejected)
    publish(url, plan)
    assert main(["verify", url, f"tokenizer={V1}/tokenizer", f"processes={processes}"]) == 2
    said = capsys.readouterr().err
    assert f"{plan.num_shards} problems" in said
    assert "accumulated/c/0/0/0/0 differs from what the codes give" in said
    assert main(["verify", good.url, f"tokenizer={V1}/generator"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["processes=-1"], "processes is -1; use 1 or more"),
        (["processes=two"], "processes is 'two'"),
        (["processes="], "processes is None"),
        (["tokenizer="], "tokenizer is None"),
        (["resume="], "resume is None"),
        (["procesess=2"], "did you mean processes?"),
        (["surplus"], "STORE [tokenizer=FOLDER] [processes=N] [resume=FILE] [--repair"),
        (["other=1"], "known keys: store, tokenizer, processes, resume"),
        (["--repair"], "STORE [tokenizer=FOLDER] [processes=N] [resume=FILE] [--repair"),
        (["--repair", "config.yaml", "surplus"], "STORE [tokenizer=FOLDER] [processes=N] [resume=FILE] [--repair"),
    ],
)
def test_an_option_that_is_none_is_refused_with_those_there_are(tmp_path, stores, capsys, options, named, tree):
    stores.build(str(tmp_path / "store"))
    before = tree(tmp_path)
    assert main(["verify", str(tmp_path / "store"), *options]) == 2
    said = capsys.readouterr().err
    assert named in said
    assert said.count("\n") == 1
    assert tree(tmp_path) == before


def test_a_verification_goes_on_with_its_file(tmp_path, stores, capsys):
    store = stores.build(str(tmp_path / "store"))
    label = tmp_path / "store" / store.manifest.plan.objects(1)["label"]
    good = label.read_bytes()
    label.write_bytes(good[:-1])
    given = ["verify", store.url, f"resume={tmp_path}/verified.jsonl"]
    assert main(given) == 2
    label.write_bytes(good)
    (tmp_path / "store" / store.manifest.plan.objects(0)["codes"]).unlink()  # of a shard that is verified
    assert main(given) == 0
    assert "is undamaged" in capsys.readouterr().out
    assert not (tmp_path / "verified.jsonl").exists()
    assert main(given) == 2
    assert "codes/c/0" in capsys.readouterr().err


def test_what_late_attempts_left_is_told_and_deleted_by_the_next_start_or_a_repair(tmp_path, monkeypatch, capsys, tree):
    for name in ("store", "store.record.json", "tokenizer", "images", "configs"):
        (shutil.copytree if (V1 / name).is_dir() else shutil.copy)(V1 / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    left = Path("store", "staged", f"00001-{'0' * 64}")

    def leave() -> None:
        left.parent.mkdir(exist_ok=True)
        left.write_bytes(b"of a late attempt")

    clean = tree("store")
    leave()
    assert main(["verify", "store"]) == 0
    assert "staged/ holds 1 objects of attempts that came too late" in capsys.readouterr().out
    for command in (["tokenize", "configs/store.yaml"], ["verify", "store", "--repair", "configs/store.yaml"]):
        leave()
        assert main(command) == 0, capsys.readouterr().err
        assert tree("store") == clean
    assert "staged" not in capsys.readouterr().out
