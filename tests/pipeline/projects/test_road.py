"""Roads: what run.yaml may say, how far a run is, and that `rdpm run` stops, refuses and goes on."""

import json
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from rdpm.jobs.cli import main
from rdpm.pipeline.foundation.lease import at_work, held
from rdpm.pipeline.foundation.records import begin
from rdpm.pipeline.projects.road import read_road
from rdpm.pipeline.projects.status import standings
from tests.jobs.commands import ENVIRONMENT


@dataclass(frozen=True)
class Made:
    """A job's config."""

    out: str


def road(folder: Path, *stages: str, **configs: dict) -> list:
    """Write a run and read it."""
    folder.mkdir(exist_ok=True)
    for name, settings in configs.items():
        (folder / f"{name}.yaml").write_text(json.dumps(settings))
    (folder / "run.yaml").write_text(json.dumps({"stages": list(stages)}))
    return read_road(str(folder))


def test_a_road_has_the_commands_of_run_yaml_in_their_order(tmp_path):
    one, two = {"job": "tokenize", "out": "a"}, {"job": "prepare", "out": "b"}
    stages = road(tmp_path, "prepare digits two.yaml", "tokenize one.yaml", one=one, two=two, three=one)
    assert [stage.words for stage in stages] == [
        ("prepare", "digits", f"{tmp_path}/two.yaml"),
        ("tokenize", f"{tmp_path}/one.yaml"),
    ]
    assert [(stage.job, stage.out) for stage in stages] == [("prepare", "b"), ("tokenize", "a")]


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([], "names no stages"),
        (["tokenize"], "has the stage 'tokenize'"),
        ([3], "has the stage 3"),
        (["tokenize one.yaml steps=3"], "has the stage"),
        (["sample one.yaml"], "to 'sample', but it is a config for 'tokenize'"),
        (["tokenize gone.yaml"], "gone.yaml' does not exist"),
        (["report none.yaml"], "has no `out`"),
    ],
)
def test_a_road_that_is_none_is_refused_with_what_is_wrong(tmp_path, stages, said):
    with pytest.raises(ValueError, match=said):
        road(tmp_path, *stages, one={"job": "tokenize", "out": "a"}, none={"job": "report"})


@pytest.mark.parametrize(
    ("text", "said"), [(None, "has no run.yaml"), ("[", "is not YAML"), ("3", "no keys"), ("a: 1", "names no stages")]
)
def test_a_folder_without_a_road_is_refused(tmp_path, text, said):
    if text is not None:
        (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_road(str(tmp_path))


def test_the_demos_have_roads(repository):
    for name in ("digits", "photos"):
        stages = read_road(str(repository / "configs" / name))
        assert [stages[0].job, stages[-1].job] == ["prepare", "report"]


def test_status_follows_records_leases_and_logs(tmp_path):
    outs = {name: str(tmp_path / "made" / name) for name in ("one", "two", "three")}
    jobs = {name: {"job": "train-tokenizer", "out": out, "steps": 90} for name, out in outs.items()}
    stages = road(tmp_path / "run", *(f"train-tokenizer {name}.yaml" for name in jobs), **jobs)

    def states() -> list[str]:
        return [standing.state for standing in standings(stages)]

    assert states() == ["next", "later", "later"]
    with begin("train-tokenizer", Made(outs["one"]), dict) as record:
        assert states() == ["running", "later", "later"]
        assert at_work(outs["one"]) is not None
        Path(outs["one"]).mkdir()
        (Path(outs["one"]) / "log.jsonl").write_text('{"step": 30}\n{"step": 60}\n{"st')
        (running, *_) = standings(stages)
        assert running.note.startswith("step 60 of 90, train-tokenizer on ")
    assert states() == ["interrupted", "later", "later"]
    assert at_work(outs["one"]) is None
    with begin("train-tokenizer", Made(outs["one"]), dict) as record:
        record.finish({})
    assert states() == ["done", "next", "later"]
    with held(outs["three"], "train-tokenizer"):
        assert states() == ["done", "next", "running"]
    (Path(outs["one"]) / "log.jsonl").unlink()
    Path(outs["one"]).rmdir()
    assert states() == ["next", "later", "later"]


@pytest.fixture
def rdpm(python, repository):
    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [*python, "-m", "rdpm", *arguments]
        return subprocess.run(command, cwd=repository, env=ENVIRONMENT, capture_output=True, text=True, check=False)

    return run


@pytest.mark.slow
def test_a_run_stops_where_a_stage_fails_and_goes_on_from_there(tmp_path, rdpm):
    data = {"job": "prepare", "out": f"{tmp_path}/data", "image_size": 8}
    broken = {"job": "prepare", "out": f"{tmp_path}/more", "image_size": 4}
    stages = ("prepare digits one.yaml", "prepare digits two.yaml")
    road(tmp_path / "run", *stages, one=data, two=broken)
    failed = rdpm("run", str(tmp_path / "run"))
    assert failed.returncode == 2
    assert "image_size is 4" in failed.stderr
    assert "prepare ended with exit code 2" in failed.stdout
    assert rdpm("status", str(tmp_path / "run")).stdout.split("\n")[0].endswith("1 of 2 stages are done")
    road(tmp_path / "run", *stages, one=data, two=broken | {"image_size": 8})
    done = rdpm("run", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path}/data is already there" in done.stdout
    assert "run: finished" in done.stdout


def test_a_config_that_no_job_takes_is_refused_before_the_first_stage_starts(tmp_path, capfd):
    data = {"job": "prepare", "out": f"{tmp_path}/data", "image_size": 8}
    report = {"job": "report", "out": f"{tmp_path}/report.html", "metric": "x"}
    road(tmp_path / "run", "prepare digits one.yaml", "report two.yaml", one=data, two=report)
    assert main(["run", str(tmp_path / "run")]) == 2
    assert "unknown config key metric" in capfd.readouterr().err
    assert not (tmp_path / "data").exists()


@pytest.mark.long
def test_sigterm_is_passed_on_and_the_run_goes_on_from_the_checkpoint(tmp_path, digit_folder, python, repository, rdpm):
    sizes = {"in_channels": 1, "channels": 8, "multipliers": [1, 2], "groups": 4, "num_res_blocks": 1}
    autoencoder, quantizer = sizes | {"attention_factors": []}, {"codebook_size": 16, "code_dim": 4}
    model = {"image_size": 8, "autoencoder": autoencoder, "quantizer": quantizer}
    loss = {"perceptual": "none", "adversarial": 0.0}
    config = {"job": "train-tokenizer", "images": digit_folder, "out": f"{tmp_path}/tokenizer", "model": model}
    config |= {"loss": loss, "batch": 4, "micro_batch": 4, "steps": 400, "workers": 0}
    config |= {"log_every": 5, "checkpoint_every": 100}
    road(tmp_path / "run", "train-tokenizer one.yaml", one=config)
    command = [*python, "-m", "rdpm", "run", str(tmp_path / "run")]
    started = subprocess.Popen(command, cwd=repository, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    log = tmp_path / "tokenizer" / "log.jsonl"
    while not log.exists() or log.read_text().count("\n") < 2:
        assert started.poll() is None
        time.sleep(0.1)
    started.send_signal(signal.SIGTERM)
    said, _ = started.communicate()
    assert started.returncode == 143, said
    assert "interrupted" in rdpm("status", str(tmp_path / "run")).stdout
    done = rdpm("run", str(tmp_path / "run"))
    assert done.returncode == 0
    assert "continuing from step" in done.stdout
