"""Publications: complete or not readable, the same pixels for whoever loads them, and nothing private in them."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rdpm.jobs.push import main
from rdpm.models.sampler import SamplerConfig
from rdpm.pipeline.exports.card import read_card
from rdpm.pipeline.foundation import files
from rdpm.pipeline.sharing import storage
from rdpm.pipeline.sharing.push import PushConfig, run
from rdpm.storage_schemas.cards import CARD, WEIGHTS
from tests.pipeline.sharing.conftest import TOKEN
from tests.pipeline.sharing.publications import pixels, push

FILES = [
    "tokenizer/model.safetensors", "generator/model.safetensors", "samples.png", "tokenizer/card.json",
    "generator/card.json", "README.md",
]  # fmt: skip


def test_what_was_pushed_draws_the_same_pixels_and_stays(trained, anywhere, tree, capsys) -> None:
    url = f"{anywhere}/digits"
    push(trained, url, license="apache-2.0")
    assert np.array_equal(pixels(url), pixels(str(trained)))
    before = tree(url)
    assert sorted(before) == sorted(FILES)
    capsys.readouterr()
    push(trained, url, license="apache-2.0")
    assert "writing" not in capsys.readouterr().out
    assert tree(url) == before


def test_it_can_be_read_from_a_web_server_but_not_written_there(trained, tmp_path, served) -> None:
    push(trained, str(tmp_path / "public"))
    url = served(tmp_path)
    assert np.array_equal(pixels(f"{url}/public"), pixels(str(trained)))
    with pytest.raises(ValueError, match="can only be read; push to the folder that is served there"):
        push(trained, f"{url}/other")


@pytest.mark.slow
def test_a_repository_of_the_hub_gets_it_in_one_commit_and_only_once(trained, hub) -> None:
    url = "hf://someone/digits"
    push(trained, url, license="cc-by-4.0", private=True)
    assert np.array_equal(pixels(url), pixels(str(trained)))
    commits = hub.commits["models/someone/digits"]
    assert len(commits) == 2  # the empty one that makes the repository, and ours
    assert sorted(commits[-1]) == sorted(FILES)
    assert hub.private["models/someone/digits"]
    push(trained, url, license="cc-by-4.0")
    assert len(commits) == 2
    push(trained, f"{url}/deeper", license="cc-by-4.0")
    assert np.array_equal(pixels(f"{url}/deeper"), pixels(str(trained)))
    push(trained, url, license="mit")  # another card, the same exports
    assert np.array_equal(pixels(f"{url}@{len(commits) - 1:040x}"), pixels(str(trained)))
    assert len(hub.sent) == len(set(hub.sent)) == 3


@pytest.mark.parametrize("refused", ["upload", "commit"])
def test_a_push_to_the_hub_that_failed_goes_on(trained, hub, refused) -> None:
    hub.refuse[refused] = 1
    with pytest.raises(OSError, match="refused"):
        push(trained, "hf://someone/digits")
    assert hub.files("models/someone/digits") == {}
    with pytest.raises(ValueError, match=r"has no card\.json"):
        pixels("hf://someone/digits")
    push(trained, "hf://someone/digits")
    assert len(hub.sent) == len(set(hub.sent)) == 3  # what was sent before is not sent again
    assert np.array_equal(pixels("hf://someone/digits"), pixels(str(trained)))


class Stopped(Exception):
    """Ends a push between two files."""


def stop_after(monkeypatch, count: int) -> None:
    """End the next push when it has written `count` files."""
    write, left = files.atomic_file, count

    def atomic_file(place: str):
        nonlocal left
        if left == 0:
            raise Stopped
        left -= 1
        return write(place)

    monkeypatch.setattr(storage.files, "atomic_file", atomic_file)


@pytest.mark.parametrize("count", range(len(FILES)))
def test_an_interrupted_push_is_not_readable_and_goes_on(trained, tmp_path, monkeypatch, count) -> None:
    url = str(tmp_path / "public")
    with monkeypatch.context() as patches:
        stop_after(patches, count)
        with pytest.raises(Stopped):
            push(trained, url)
    assert [name for name in FILES if files.exists(f"{url}/{name}")] == FILES[:count]
    if count < FILES.index("generator/card.json") + 1:
        with pytest.raises(ValueError, match=r"has no card\.json"):
            pixels(url)
    push(trained, url)
    assert np.array_equal(pixels(url), pixels(str(trained)))


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_other_exports_are_replaced_only_if_asked_and_never_mixed(
    trained, tmp_path, exports, monkeypatch, count
) -> None:
    url, other = str(tmp_path / "public"), tmp_path / "other"
    tokenizer = exports.tokenizer(str(other / "tokenizer"), seed=3)
    exports.generator(str(other / "generator"), tokenizer, seed=4)
    exports.generator(str(trained / "calibrated"), read_card(str(trained / "tokenizer"), "tokenizer"), seed=5)
    (trained / "metrics.json").unlink()
    push(trained, url)
    with pytest.raises(ValueError, match=r"already holds another export .*; choose another URL, or give replace=true"):
        push(other, url)
    with monkeypatch.context() as patches:
        stop_after(patches, count)
        with pytest.raises(Stopped):
            push(other, url, replace=True)
    if not files.exists(f"{url}/generator/{CARD}"):
        with pytest.raises(ValueError, match=r"has no card\.json"):
            pixels(url)
    push(other, url)  # nothing of the old ones is left that could be told from ours
    assert np.array_equal(pixels(url), pixels(str(other)))
    assert not files.exists(f"{url}/calibrated/{WEIGHTS}")


def test_others_are_replaced_on_the_hub_in_one_commit(trained, tmp_path, exports, hub) -> None:
    url, other = "hf://someone/digits", tmp_path / "other"
    exports.generator(str(other / "generator"), exports.tokenizer(str(other / "tokenizer"), seed=3), seed=4)
    exports.generator(str(trained / "calibrated"), read_card(str(trained / "tokenizer"), "tokenizer"), seed=5)
    push(trained, url)
    with pytest.raises(ValueError, match="give replace=true"):
        push(other, url)
    push(other, url, replace=True)
    assert len(hub.commits["models/someone/digits"]) == 3
    assert sorted(hub.files("models/someone/digits")) == sorted(FILES)
    assert np.array_equal(pixels(url), pixels(str(other)))


def test_a_readme_of_somebody_else_is_kept(trained, tmp_path) -> None:
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "README.md").write_text("# Mine\n")
    with pytest.raises(ValueError, match="was not written by rdpm push; choose another URL"):
        push(trained, str(tmp_path / "public"))
    assert sorted(path.name for path in (tmp_path / "public").iterdir()) == ["README.md"]


def test_paths_of_this_machine_and_secrets_are_not_published(trained, tmp_path, tree, monkeypatch) -> None:
    url = str(tmp_path / "public")
    path = trained / "tokenizer" / CARD
    card = files.read_json(str(path))
    card["training"]["loss"] = {"perceptual": "/home/me/weights/vgg16.pth"}
    files.write_json(str(path), card)
    push(trained, url)
    published = tree(url)
    assert b"vgg16.pth" in published[f"tokenizer/{CARD}"]
    for data in published.values():
        for private in (str(tmp_path), "/home/me", str(Path.cwd()), str(Path.home())):
            assert private.encode() not in data
    shutil.rmtree(url)
    monkeypatch.setenv("SOME_TOKEN", "class-that-is-secret")
    path = trained / "generator" / CARD
    for name, said in (("class-that-is-secret", "password or key"), (str(trained), "of this machine")):
        card = files.read_json(str(path))
        card["made_from"]["classes"][0] = name
        files.write_json(str(path), card)
        with pytest.raises(ValueError, match=said):
            push(trained, url)
        assert not files.exists(url)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"run": ""}, "there is nothing to publish; give a run, or generator and tokenizer"),
        ({"generator": "g"}, "generator and tokenizer belong together"),
        ({"run": "nowhere"}, "has no card.json, so it is no trained generator"),
        ({"out": "hf://datasets/someone/digits"}, "is no repository of models; give hf://USER/REPOSITORY"),
        ({"out": "hf://digits"}, "is no repository of models; give hf://USER/REPOSITORY"),
        ({"out": "s3://key:secret@bucket/x"}, "contains credentials"),
        ({"out": "s3://bucket/"}, "is a whole bucket; publish under a name in it, as in s3://bucket/NAME"),
    ],
)
def test_bad_wishes_are_refused(trained, tmp_path, hub, settings, said) -> None:
    with pytest.raises(ValueError, match=said):
        run(PushConfig(**{"run": str(trained), "out": str(tmp_path / "public"), "device": "cpu", **settings}))
    assert not files.exists(str(tmp_path / "public"))


def test_metrics_of_other_models_are_refused(trained, tmp_path, exports) -> None:
    exports.generator(str(trained / "generator"), read_card(str(trained / "tokenizer"), "tokenizer"), seed=9)
    with pytest.raises(ValueError, match=r"metrics.json is about generator .*; run rdpm evaluate again"):
        push(trained, str(tmp_path / "public"))


@pytest.mark.slow
@pytest.mark.parametrize("text", ["[1, 2]", '{"digest": "0"}'])
def test_what_is_no_metrics_is_refused(trained, tmp_path, text) -> None:
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match=r"other.json' was not written by rdpm evaluate"):
        run(PushConfig(out=str(tmp_path / "out"), run=str(trained), metrics=str(tmp_path / "other.json")))
    with pytest.raises(ValueError, match=r"none.json' does not exist; run rdpm evaluate first"):
        run(PushConfig(out=str(tmp_path / "out"), run=str(trained), metrics=str(tmp_path / "none.json")))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused_by_name(trained, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"device is cuda, and .* has no GPU that PyTorch can use; use device=cpu"):
        run(PushConfig(out=str(tmp_path / "out"), run=str(trained), device="cuda"))
    assert not (tmp_path / "out").exists()


def test_the_command_pushes_with_the_hubs_own_settings(trained, hub, python, repository, monkeypatch, tmp_path) -> None:
    """In a process of its own, which finds the endpoint and the token in HF_ENDPOINT and HF_TOKEN."""
    variables = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf")}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    command = [*python, "-m", "rdpm", "push", str(trained), "hf://someone/digits", "device=cpu"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "push: hf://someone/digits holds generator" in " ".join(done.stdout.split())
    assert "no licence is given" in " ".join(done.stdout.split())
    assert TOKEN not in done.stdout + done.stderr
    assert np.array_equal(pixels("hf://someone/digits"), pixels(str(trained)))


def test_the_command_takes_a_run_or_two_exports(trained, tmp_path) -> None:
    generator, tokenizer = f"generator={trained}/generator", f"tokenizer={trained}/tokenizer"
    main([str(tmp_path / "public"), generator, tokenizer, "device=cpu"])
    assert np.array_equal(pixels(str(tmp_path / "public")), pixels(str(trained)))
    with pytest.raises(ValueError, match="are not RUN URL"):
        main(["a", "b", "c"])


def test_the_default_sampler_is_the_runs(trained) -> None:
    from rdpm.pipeline.sharing.contents import collect

    contents = collect(str(trained), "", "", "", None)
    assert contents.sampler == SamplerConfig()
    assert contents.measured is None
    assert collect(str(trained), "", "", "", replace(SamplerConfig(), top_k=3)).sampler.top_k == 3
