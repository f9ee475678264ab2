"""The command line: help, names of commands, and settings that no command takes."""

import importlib
import json
import os
import subprocess
import sys
from functools import partial

import pytest

from rdpm import __version__
from rdpm.jobs.cli import COMMANDS, main
from tests.jobs.commands import assert_refused


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_command(rdpm, arguments):
    ended = rdpm(*arguments)
    assert ended.code == 0
    assert ended.err == ""
    assert all(f"rdpm {command} " in ended.out for command in COMMANDS)


def test_the_version_is_that_of_the_package(rdpm):
    ended = rdpm("--version")
    assert (ended.code, ended.out, ended.err) == (0, f"rdpm {__version__}\n", "")


def test_help_of_a_command_says_what_it_does_and_runs_nothing(rdpm):
    for command, (_, text) in COMMANDS.items():
        if command in ("prepare", "verify", "sample"):
            ended = rdpm(command, "--help")
            assert (ended.code, ended.err) == (0, "")
            assert text in ended.out


def test_help_loads_nothing_heavy(python, repository):
    code = "import sys; from rdpm.jobs.cli import main; main(['--help']); main(['sample', '-h']); print(*sys.modules)"
    done = subprocess.run([*python, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "deepspeed", "zarr", "pyarrow", "fsspec"} & set(done.stdout.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_a_module_with_an_entry_and_its_own_name(command):
    name = COMMANDS[command][0]
    module = importlib.import_module(name)
    assert command == module.JOB
    assert callable(module.main)
    assert name.split(".")[1] not in sys.stdlib_module_names


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "30000000000")]
)
def test_threads_that_wait_sleep_soon_unless_the_environment_says_otherwise(python, repository, given, spins):
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [*python, "-m", "rdpm", "describe", "configs/digits/generator.yaml"], cwd=repository, capture_output=True,
        text=True, env={**kept, **given, "OMP_DISPLAY_ENV": "VERBOSE"}, check=True,
    )  # fmt: skip
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr


def test_an_unknown_command_is_refused_by_name(rdpm):
    ended = rdpm("tokenise")
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
    assert "'tokenise'" in ended.err
    assert "tokenize" in ended.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["digits", "image_sise=3"], ["image_sise", "image_size"]),
        (["digits", "image_size=big"], ["image_size", "'big'"]),
        (["digits", "image_size=4"], ["image_size is 4"]),
        (["digits", "image_size=[4"], ["image_size=[4"]),
        (["digits", "nowhere.yaml"], ["nowhere.yaml"]),
        (["digits", "configs/digits/store.yaml"], ["'tokenize'", "'prepare'"]),
        (["digits", "one.yaml", "two.yaml"], ["one.yaml two.yaml"]),
        (["digits", "--fast"], ["--fast"]),
        (["letters"], ["'letters'"]),
    ],
)
def test_bad_settings_are_refused_by_name_and_leave_nothing(rdpm, tmp_path, untouched, arguments, named):
    with untouched():
        assert_refused(rdpm("prepare", *arguments, f"out={tmp_path}/data"), "prepare", *named)


def test_verify_says_that_a_whole_store_is_whole(loaded_rdpm, tmp_path, stores):
    store = stores.build(str(tmp_path / "store"))
    ended = loaded_rdpm("verify", str(tmp_path / "store"))
    assert (ended.code, ended.err) == (0, "")
    assert store.id[:12] in ended.out
    assert "zero 10, one 10; 0 rejects" in ended.out
    assert "not checked: whether accumulated" in ended.out


def test_verify_restores_a_lost_plan_and_commit(loaded_rdpm, tmp_path, stores, tree):
    stores.build(str(tmp_path / "store"))
    clean = tree(tmp_path / "store")
    (tmp_path / "store" / "plan.json").unlink()
    (tmp_path / "store" / "commits" / "00001.json").unlink()
    (tmp_path / "store.yaml").write_text("{job: tokenize, images: images, tokenizer: tokenizer, out: elsewhere}")
    ended = loaded_rdpm("verify", str(tmp_path / "store"), "--repair", str(tmp_path / "store.yaml"))
    assert (ended.code, ended.err) == (0, "")
    assert "made again: none" in ended.out
    assert tree(tmp_path / "store") == clean


@pytest.mark.slow
def test_verify_refuses_a_store_without_a_manifest_and_a_damaged_one_by_name(loaded_rdpm, tmp_path, untouched, stores):
    stores.build(str(tmp_path / "unfinished"))
    (tmp_path / "unfinished" / "manifest.json").unlink()
    stores.build(str(tmp_path / "damaged"))
    label = tmp_path / "damaged" / "label" / "c" / "1"
    label.write_bytes(label.read_bytes()[:-1] + b"?")
    with untouched():
        verify = partial(loaded_rdpm, "verify")
        assert_refused(verify(f"{tmp_path}/unfinished"), "verify", f"{tmp_path}/unfinished", "manifest.json")
        assert_refused(verify(f"{tmp_path}/damaged"), "verify", f"{tmp_path}/damaged", "label/c/1")
        assert_refused(verify(f"{tmp_path}/nowhere"), "verify", f"{tmp_path}/nowhere")
        assert_refused(verify(), "verify", "STORE")
        given = [f"{tmp_path}/damaged", "--repair", str(tmp_path / "gone.yaml")]
        assert_refused(verify(*given), "verify", "gone.yaml")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "millions"),
    [("d12", 133), pytest.param("d16", 310, marks=pytest.mark.long), pytest.param("d20", 602, marks=pytest.mark.long)],
)
def test_the_generators_have_the_parameters_of_the_papers_table_1(loaded_rdpm, name, millions):
    ended = loaded_rdpm("describe", f"configs/imagenet256/{name}.yaml", "--json")
    assert ended.code == 0
    facts = json.loads(ended.out)
    assert facts["parameters"] == pytest.approx(millions * 1e6, rel=5e-3)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "CONFIG.yaml"),
        (["configs/digits/store.yaml"], "'tokenize'"),
        (["nowhere.yaml"], "nowhere.yaml"),
        (["configs/imagenet256/d12.yaml", "model.depths=3"], "model.depths"),
    ],
)
def test_describe_refuses_what_is_no_models_config_by_name(loaded_rdpm, arguments, named):
    assert_refused(loaded_rdpm("describe", *arguments), "describe", named)


def test_the_deepspeed_launchers_own_argument_is_passed_over(capsys) -> None:
    assert main(["--local_rank=1", "help"]) == 0
    assert "train-generator" in capsys.readouterr().out


@pytest.mark.slow
def test_a_path_that_cannot_be_used_is_one_sentence(tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert main(["prepare", "digits", f"out={tmp_path}/file/x"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("rdpm prepare: ")
    assert said.count("\n") == 1
