"""Names that strangers chose: classes, keys and file names that are no UTF-8, lead out of a folder or go in circles."""

import io
import json
import os
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rdpm.pipeline.images.listing import list_images

_BUFFER = io.BytesIO()
Image.new("L", (4, 4)).save(_BUFFER, "PNG")
PNG = _BUFFER.getvalue()
BAD = os.fsdecode(b"caf\xe9")  # Latin-1


def refusal(images) -> str:
    with pytest.raises(ValueError) as refused:
        list_images(str(images))
    assert "\n" not in str(refused.value)
    str(refused.value).encode()
    return str(refused.value)


def write_tar(path, **members: bytes) -> str:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT, errors="surrogateescape") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def write_parquet(path, keys: list[str], labels: list, names: tuple[str, ...] = ()) -> str:
    described = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    table = pa.table({"key": keys, "image": [PNG] * len(keys), "label": labels})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(described)}), path)
    return str(path)


OUT = ["../../../escaped", "..", "a/../../b", "/etc", "a\\..\\..\\b", "\\b", "a\0b"]


@pytest.mark.parametrize("name", OUT)
def test_a_class_that_leads_out_of_its_folder_is_refused_with_file_and_class(tmp_path, name):
    """From a .cls file, a label in Parquet and a name in Hugging Face's schema."""
    sources = [
        write_tar(tmp_path / "x.tar", **{"7.png": PNG, "7.cls": name.encode()}),
        write_parquet(tmp_path / "label.parquet", ["7.png"], [name]),
        write_parquet(tmp_path / "names.parquet", ["7.png"], [0], (name,)),
    ]
    for source in sources:
        said = refusal(source)
        assert source in said
        assert "'7.png'" in said
        assert repr(name) in said
        assert "leads out of its folder; rename it" in said


def test_a_key_that_leads_out_is_refused_and_in_a_tar_it_is_a_hidden_name(tmp_path):
    said = refusal(write_parquet(tmp_path / "x.parquet", ["a/../../../x.png"], ["cat"]))
    assert "image 'a/../../../x.png' of class 'cat'" in said
    assert "name that leads out of its folder" in said
    tar = write_tar(tmp_path / "x.tar", **{"../../1.png": PNG, "../2.png": PNG, "../2.cls": b"a", "a/../../3.png": PNG})
    assert "hold no images" in refusal(tar)


@pytest.mark.parametrize("name", ["CD/DVD", "tench, Tinca tinca", "..a", "a..", "100%", "犬", "a: b", "con"])
def test_every_other_class_stays_what_it_is(tmp_path, name):
    tar = write_tar(tmp_path / "x.tar", **{"7.png": PNG, "7.cls": name.encode()})
    for source in (tar, write_parquet(tmp_path / "x.parquet", ["7.png"], [0], (name,))):
        listing = list_images(source)
        assert listing.classes == (name,)
        assert listing.key(0) == f"{name}/7.png"


def test_a_name_that_is_not_utf8_is_named_in_one_sentence(tmp_path):
    for number, key in enumerate((f"a/{BAD}.png", f"{BAD}/1.png", f"a/{BAD}/1.png")):
        path = tmp_path / str(number) / key
        path.parent.mkdir(parents=True)
        path.write_bytes(PNG)
        for source in (tmp_path / str(number), write_tar(tmp_path / f"{number}.tar", **{key: PNG})):
            said = refusal(source)
            assert r"caf\udce9" in said
            assert "is not UTF-8; rename it" in said
    said = refusal(write_tar(tmp_path / "x.tar", **{"1.png": PNG, "1.cls": b"caf\xe9"}))
    assert "'1.cls' in" in said
    assert "is no class name in UTF-8" in said
    label = pa.array([b"caf\xe9"]).view(pa.string())
    pq.write_table(pa.table({"image": [PNG], "label": label}), tmp_path / "x.parquet")
    assert r"b'caf\xe9'" in refusal(tmp_path / "x.parquet")
    tar = write_tar(os.path.join(tmp_path, f"{BAD}.tar"), **{"a/1.png": PNG})
    assert "is not UTF-8" in refusal(tar)


def test_a_class_file_that_is_no_class_is_named_and_not_read_whole(tmp_path):
    said = refusal(write_tar(tmp_path / "x.tar", **{"1.png": PNG, "1.cls": b"x" * 5000}))
    assert "'1.cls' in" in said
    assert "has more than 4096 bytes" in said


def test_a_member_of_negative_size_ends_the_listing_and_not_the_patience(tmp_path):
    """Its next header would be the same one again."""
    path = tmp_path / "x.tar"
    write_tar(path, **{"a/1.png": PNG})
    data = bytearray(path.read_bytes())
    for field in (b"-0000001000\0", b"\xff" * 10 + b"\xfe\x00"):  # octal, base 256
        data[124:136] = field
        data[148:156] = b"%06o\0 " % (sum(data[:148]) + 8 * 32 + sum(data[156:512]))
        path.write_bytes(data)
        assert "is no complete, plain tar" in refusal(path)


def test_links_to_folders_and_images_are_followed_and_a_circle_is_refused(tmp_path):
    root, away = tmp_path / "root", tmp_path / "away"
    for folder in (root / "a", away / "deep"):
        folder.mkdir(parents=True)
    (root / "a" / "1.png").write_bytes(PNG)
    (away / "2.png").write_bytes(PNG)
    (away / "deep" / "3.png").write_bytes(PNG)
    (away / ".hidden").symlink_to(root)
    (root / "b").symlink_to(away)
    (root / "a" / "more").symlink_to(away)
    (root / "a" / "again").symlink_to(away / "deep")
    (root / "a" / "one.png").symlink_to(away / "2.png")
    (root / "a" / "gone.png").symlink_to(away / "nothing.png")
    os.mkfifo(root / "a" / "pipe.png")
    listing = list_images(str(root))
    assert listing.table["key"].to_pylist() == [
        "a/1.png", "a/again/3.png", "a/gone.png", "a/more/2.png", "a/more/deep/3.png", "a/one.png", "b/2.png",
        "b/deep/3.png",
    ]  # fmt: skip
    assert [listing.read(i) for i in (1, 3, 5, 6)] == [PNG] * 4
    for circle, target in ((root / "a" / "self", root / "a"), (away / "deep" / "up", away), (root / "whole", root)):
        circle.symlink_to(target)
        said = refusal(root)
        assert circle.name in said
        assert "is a link to a folder that holds it" in said
        circle.unlink()
