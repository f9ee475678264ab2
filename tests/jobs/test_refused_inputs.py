"""What trainings, `tokenize` and `sample` refuse, in one sentence and leaving nothing behind."""

import shutil
from pathlib import Path

import pytest

from tests.jobs.commands import assert_refused


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
