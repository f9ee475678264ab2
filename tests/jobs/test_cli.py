import contextlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from rdpm.jobs.cli import COMMANDS, main

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

# Commands whose imports take seconds run in forks of one process that has them loaded.
LOADED = """
import importlib, json, os, runpy, sys, traceback
for name in ("describe", "sample", "tokenize_images", "train_generator", "train_tokenizer", "verify"):
    importlib.import_module(f"rdpm.jobs.{name}")
for line in sys.stdin:
    arguments, folder = json.loads(line)
    child = os.fork()
    if not child:
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(f"{folder}/{name}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
        sys.argv = ["rdpm", *arguments]
        try:
            runpy.run_module("rdpm", run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            code = ended.code
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        os._exit(code)  # taking down what is loaded would cost a second
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """A command that ran to its end."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def rdpm(python, repository):
    """Run `python -m rdpm` with these arguments."""

    def run(*arguments: str) -> Ended:
        command = [*python, "-m", "rdpm", *arguments]
        done = subprocess.run(
            command, cwd=repository, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="module")
def loaded_rdpm(python, repository, tmp_path_factory):
    """The same, each run a process of its own, forked from one that has imported the jobs."""
    folder = tmp_path_factory.mktemp("streams")
    server = subprocess.Popen(
        [*python, "-c", LOADED],
        cwd=repository,
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def run(*arguments: str) -> Ended:
        server.stdin.write(json.dumps([arguments, str(folder)]) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return Ended(code, (folder / "stdout").read_text(), (folder / "stderr").read_text())

    yield run
    server.communicate(timeout=30)


def assert_refused(ended: Ended, command: str, *named: str) -> None:
    """One sentence from us on stderr that names the offending values, an exit code, and no traceback."""
    assert ended.code == 2, ended
    ours = [line for line in ended.err.splitlines() if line.startswith("rdpm")]
    assert len(ours) == 1, ended.err
    assert ours[0].startswith(f"rdpm {command}: ")
    assert "Traceback" not in ended.err + ended.out
    for value in named:
        assert value in ours[0]


@pytest.fixture
def untouched(tmp_path):
    """A block that must leave tmp_path as it finds it, except for leases."""

    def listing() -> list[tuple[str, int]]:
        paths = (path for path in tmp_path.rglob("*") if ".lease" not in str(path))
        return sorted((str(path), path.stat().st_size) for path in paths)

    @contextlib.contextmanager
    def block():
        before = listing()
        yield
        assert listing() == before

    return block


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_command(rdpm, arguments):
    ended = rdpm(*arguments)
    assert ended.code == 0
    assert ended.err == ""
    assert all(f"rdpm {command} " in ended.out for command in COMMANDS)


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


@pytest.fixture
def images(tmp_path, digit_folder) -> str:
    """Two of the classes of real digits."""
    for label in "01":
        shutil.copytree(Path(digit_folder) / label, tmp_path / "images" / label)
    return str(tmp_path / "images")


@pytest.mark.slow
def test_a_missing_source_is_refused_by_name_and_leaves_nothing(loaded_rdpm, tmp_path, untouched, exports):
    exports.tokenizer(str(tmp_path / "tokenizer"))
    with untouched():
        given = [f"images={tmp_path}/nowhere", f"out={tmp_path}/out"]
        assert_refused(loaded_rdpm("train-tokenizer", *given), "train-tokenizer", f"{tmp_path}/nowhere")
        given.append(f"tokenizer={tmp_path}/tokenizer")
        assert_refused(loaded_rdpm("tokenize", *given), "tokenize", f"{tmp_path}/nowhere")


def test_an_empty_source_is_refused_by_name_and_leaves_nothing(loaded_rdpm, tmp_path, untouched, exports):
    exports.tokenizer(str(tmp_path / "tokenizer"))
    (tmp_path / "empty" / "class").mkdir(parents=True)
    with untouched():
        given = [f"images={tmp_path}/empty", f"out={tmp_path}/out"]
        assert_refused(loaded_rdpm("train-tokenizer", *given), "train-tokenizer", f"{tmp_path}/empty")
        given.append(f"tokenizer={tmp_path}/tokenizer")
        assert_refused(loaded_rdpm("tokenize", *given), "tokenize", f"{tmp_path}/empty")


def test_a_folder_that_is_no_tokenizer_is_refused_by_name_and_leaves_nothing(loaded_rdpm, tmp_path, untouched, images):
    with untouched():
        given = [f"images={images}", f"tokenizer={images}", f"out={tmp_path}/out"]
        assert_refused(loaded_rdpm("tokenize", *given), "tokenize", images, "card.json")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["shard_rows=6", "chunk_rows=4"], ["6", "4"]),
        (["chunk_rows=0"], ["chunk_rows", "0"]),
        (["shard_rows=0"], ["shard_rows", "0"]),
        (["views=[]"], ["views", "[]"]),
        (["views=[side]"], ["side"]),
        (["max_rejects=1"], ["max_rejects", "1"]),
    ],
)
def test_a_store_that_cannot_be_is_refused_and_leaves_nothing(
    loaded_rdpm, tmp_path, untouched, images, exports, settings, named
):
    exports.tokenizer(str(tmp_path / "tokenizer"))
    with untouched():
        given = [f"images={images}", f"tokenizer={tmp_path}/tokenizer", f"out={tmp_path}/out"]
        assert_refused(loaded_rdpm("tokenize", *given, *settings), "tokenize", *named)


@pytest.mark.slow
def test_a_codebook_that_uint16_cannot_hold_is_refused_and_leaves_nothing(rdpm, tmp_path, untouched, images):
    with untouched():
        given = [f"images={images}", f"out={tmp_path}/out", "model.quantizer.codebook_size=70000"]
        assert_refused(rdpm("train-tokenizer", "configs/digits/tokenizer.yaml", *given), "train-tokenizer", "70000")


SPACE = [
    "model={depth: 1, num_classes: 2, num_steps: 3, codebook_size: 16, code_dim: 4, grid: 4}",
    "batch=4",
    "micro_batch=4",
    "steps=1",
]


def test_a_store_of_a_foreign_tokenizer_is_refused_by_both_digests_and_leaves_nothing(
    loaded_rdpm, tmp_path, untouched, stores, exports
):
    mine, foreign = (exports.tokenizer(str(tmp_path / f"tokenizer{seed}"), seed) for seed in (0, 1))
    stores.build(str(tmp_path / "store"), stores.plan(**exports.identity(foreign)))
    with untouched():
        given = [f"stores=[{tmp_path}/store]", f"tokenizer={tmp_path}/tokenizer0", f"out={tmp_path}/out", *SPACE]
        ended = loaded_rdpm("train-generator", *given)
        assert_refused(ended, "train-generator", mine.digest[:12], foreign.digest[:12], f"{tmp_path}/store")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("model.grid=8", ["model.grid is 8", "4"]),
        ("model.codebook_size=32", ["model.codebook_size is 32", "16"]),
        ("model.num_classes=10", ["model.num_classes is 10", "2"]),
        ("label_dropout=1.5", ["label_dropout is 1.5"]),
        ("stores=[]", ["stores is empty"]),
    ],
)
def test_a_model_of_another_token_space_is_refused_by_name_and_leaves_nothing(
    loaded_rdpm, tmp_path, untouched, stores, exports, setting, named
):
    card = exports.tokenizer(str(tmp_path / "tokenizer"))
    stores.build(str(tmp_path / "store"), stores.plan(**exports.identity(card)))
    with untouched():
        given = [
            f"stores=[{tmp_path}/store]",
            f"tokenizer={tmp_path}/tokenizer",
            f"out={tmp_path}/out",
            *SPACE,
            setting,
        ]
        assert_refused(loaded_rdpm("train-generator", *given), "train-generator", *named)


def test_sampling_with_a_foreign_tokenizer_is_refused_by_both_digests_and_leaves_nothing(
    loaded_rdpm, tmp_path, untouched, exports
):
    mine, foreign = (exports.tokenizer(str(tmp_path / f"tokenizer{seed}"), seed) for seed in (0, 1))
    exports.generator(str(tmp_path / "generator"), mine)
    with untouched():
        given = [f"generator={tmp_path}/generator", f"tokenizer={tmp_path}/tokenizer1", f"out={tmp_path}/out"]
        ended = loaded_rdpm("sample", *given)
        assert_refused(ended, "sample", mine.digest[:12], foreign.digest[:12])


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [
        *("per_class=0", "shard_rows=0", "formats=[gif]", "precision=fp8", "labels=[1, 1]"),
        *("sampler.temperature=-1", "sampler.guidance=-1", "sampler.top_p=0", "sampler=gumble"),
    ],
)
def test_samples_that_cannot_be_are_refused_by_the_value_and_leave_nothing(
    loaded_rdpm, tmp_path, untouched, exports, setting
):
    exports.generator(str(tmp_path / "generator"), exports.tokenizer(str(tmp_path / "tokenizer")))
    with untouched():
        given = [f"generator={tmp_path}/generator", f"tokenizer={tmp_path}/tokenizer", f"out={tmp_path}/out", setting]
        key, value = setting.split(".")[-1].split("=")
        assert_refused(loaded_rdpm("sample", *given), "sample", key, value.strip("[]"))


def test_sampling_a_class_that_is_none_is_refused_by_its_label_and_leaves_nothing(
    loaded_rdpm, tmp_path, untouched, exports
):
    exports.generator(str(tmp_path / "generator"), exports.tokenizer(str(tmp_path / "tokenizer")))
    with untouched():
        given = [f"generator={tmp_path}/generator", f"tokenizer={tmp_path}/tokenizer", f"out={tmp_path}/out"]
        assert_refused(loaded_rdpm("sample", *given, "labels=[1,2]"), "sample", "label 2", "0 to 1")


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
@pytest.mark.parametrize(("name", "millions"), [("d12", 133), ("d16", 310), ("d20", 602)])
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
