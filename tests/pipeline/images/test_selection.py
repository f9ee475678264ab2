"""Parts of a source by keys: they are disjoint, complete, of the same classes, and read as the source itself is."""

import tarfile
from contextlib import closing
from pathlib import Path

import pytest

from rdpm.pipeline.images.listing import list_images, read_images
from rdpm.pipeline.images.sources.source import open_source
from rdpm.pipeline.images.worklist import Worklist


def part(folder: Path, name: str, source: str, **keys: list[str]) -> str:
    """The YAML file of a part, beside its files of keys."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"images: {source}"]
    for word, names in keys.items():
        (folder / f"{name}-{word}.txt").write_text("".join(f"{key}\n" for key in names))
        lines.append(f"{word}: {name}-{word}.txt")
    (folder / f"{name}.yaml").write_text("\n".join(lines))
    return str(folder / f"{name}.yaml")


def test_two_parts_share_nothing_lack_nothing_and_have_all_classes(tmp_path, digit_folder):
    whole = list_images(digit_folder)
    keys = whole.table["key"].to_pylist()
    held = [key for key in keys if key.startswith("0/")] + keys[-1:]  # all of one class, so the other part lacks it
    train = list_images(part(tmp_path, "train", digit_folder, without=held))
    val = list_images(part(tmp_path, "val", digit_folder, only=held))
    assert sorted(train.table["key"].to_pylist() + val.table["key"].to_pylist()) == sorted(keys)
    assert train.classes == val.classes == whole.classes
    assert train.digest != val.digest
    labels = dict(zip(keys, whole.table["label"].to_pylist(), strict=True))
    contents = {key: data for key, (_, data) in zip(keys, read_images(whole.table), strict=True)}
    for listing in (train, val):
        for index in range(len(listing)):
            assert listing.label(index) == labels[listing.key(index)]
            assert listing.read(index) == contents[listing.key(index)]


def test_a_part_that_leaves_nothing_out_has_the_digest_of_its_source(tmp_path, digit_folder):
    assert list_images(part(tmp_path, "all", digit_folder)).digest == list_images(digit_folder).digest
    assert list_images(part(tmp_path, "none", digit_folder, without=[])).digest == list_images(digit_folder).digest


def test_what_lies_elsewhere_changes_nothing(tmp_path, digit_folder):
    keys = list_images(digit_folder).table["key"].to_pylist()[:5]
    one, other = (list_images(part(tmp_path / name, "val", digit_folder, only=keys)) for name in ("a", "b"))
    assert one.digest == other.digest


def test_a_job_lists_a_part_of_a_tar_again_when_its_keys_change(tmp_path, digit_folder):
    with tarfile.open(tmp_path / "digits.tar", "w") as tar:
        tar.add(digit_folder, arcname=".")
    source, store = str(tmp_path / "digits.tar"), str(tmp_path / "store")
    keys = list_images(source).table["key"].to_pylist()
    images = part(tmp_path, "part", source, without=keys[:2])
    before = open_source(images).fingerprint
    with closing(Worklist(images, store)) as first:
        assert first.summary.images == len(keys) - 2
        first.write({0: range(len(keys) - 2)})
    part(tmp_path, "part", source, without=keys[:3])
    assert before not in ("", open_source(images).fingerprint, open_source(source).fingerprint)
    with closing(Worklist(images, store)) as again:
        assert again.summary.images == len(keys) - 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("only: x.txt", "describe no part"),
        ("images: a\nexcept: b", "describe no part"),
        ("images: a\nonly: {b: c}", "describe no part"),
        ("images: [", "is not YAML"),
        ("images: part.yaml", "which is a part itself"),
        ("images: DIGITS\nonly: gone.txt", "gone.txt', which"),
        ("images: DIGITS\nonly: keys.txt", "select none"),
        ("images: DIGITS\nonly: bytes.txt", "is not UTF-8"),
        ("images: nowhere\nwithout: keys.txt", "nowhere' do not exist"),
    ],
)
def test_a_part_that_is_wrong_is_refused_by_name(tmp_path, digit_folder, text, said):
    (tmp_path / "keys.txt").write_text("no/such.png\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\n")
    (tmp_path / "it.yaml").write_text(text.replace("DIGITS", digit_folder))
    with pytest.raises(ValueError, match=said):
        list_images(str(tmp_path / "it.yaml"))
