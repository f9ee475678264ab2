"""rdpm serve: what it refuses before it serves."""

import sys

import pytest
import torch

from rdpm.jobs.cli import main

_NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "RUN"),
        (["port=80"], "port=80"),
        (["run", "other"], "run other"),
        (["run", "prot=80"], "did you mean port"),
        (["run", "port=70000"], "port is 70000"),
        (["run", "port=web"], "port is 'web'"),
        (["run", "batch=0"], "batch is 0"),
        (["nowhere"], "nowhere/generator"),
        pytest.param(["nowhere", "device=cuda"], "device is cuda", marks=_NO_GPU),
        (["s3://key:secret@bucket/run"], "credentials"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, named, capsys):
    assert main(["serve", *arguments]) == 2
    refusal = capsys.readouterr().err
    assert refusal.startswith("rdpm serve: ")
    assert named in refusal
    assert "secret" not in refusal
    assert len(refusal.splitlines()) == 1


def test_without_the_extra_it_says_what_to_install(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith(("rdpm.jobs.serve", "rdpm.pipeline.app.server"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "aiohttp", None)  # as if it were not installed
    assert main(["serve", "run"]) == 2
    assert "pip install '.[app]'" in capsys.readouterr().err
