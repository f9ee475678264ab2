"""Tars read in place, and what is no source."""

import io
import tarfile
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rdpm.pipeline.foundation import files
from rdpm.pipeline.images.listing import list_images
from tests.pipeline.images.laid import keys_of, lay, picture, write_tar


def test_long_names_links_and_folders_in_a_tar_are_read_as_tarfile_reads_them(tmp_path):
    long = "n" * 150 + ".png"
    for number, kind in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT)):
        path = tmp_path / f"{number}.tar"
        name = long if kind != tarfile.USTAR_FORMAT else "d" * 120 + "/e.png"
        with tarfile.open(path, "w", format=kind) as tar:
            link = tarfile.TarInfo("a/link.png")
            link.type, link.linkname = tarfile.SYMTYPE, "x"
            tar.addfile(link)
            for member in (f"a/{name}", "a/\u00e9.png"):
                info = tarfile.TarInfo(member)
                info.size = 700
                tar.addfile(info, io.BytesIO(bytes([number]) * 700))
        listing = list_images(str(path))
        assert keys_of(listing) == sorted([f"a/{name}", "a/\u00e9.png"])
        assert all(listing.read(i) == bytes([number]) * 700 for i in range(2))


@pytest.mark.parametrize("cut", [0, 1, 511, 512, 700, 1024])
def test_a_truncated_tar_is_refused_by_name(tmp_path, cut):
    """Also where the tar ends between two members, so that the rest looks like a complete one."""
    path = tmp_path / "x.tar"
    write_tar(path, **{"a__1.png": bytes(512), "a__2.png": bytes(512)})
    path.write_bytes(path.read_bytes()[: 2048 - cut])
    with pytest.raises(ValueError, match=r"x\.tar' is no complete, plain tar"):
        list_images(str(path))


def test_what_is_no_source_or_several_is_refused_by_name(tmp_path):
    def refused(match: str, images: str = "") -> None:
        with pytest.raises(ValueError, match=match) as refusal:
            list_images(images or str(tmp_path))
        assert "\n" not in str(refusal.value)

    refused("match no file", str(tmp_path / "*.tar"))
    refused("do not exist", str(tmp_path / "train-{000..002}.tar"))
    lay(str(tmp_path), "a/1.png")
    refused("neither tar nor Parquet", str(tmp_path / "a" / "1.png"))
    write_tar(tmp_path / "x.tar", **{"loose.png": picture()})
    refused("both folders and files like x.tar")
    refused(r"loose\.png' in .*x\.tar' has no class", str(tmp_path / "x.tar"))
    with tarfile.open(tmp_path / "x.tar", "w:gz") as tar:
        tar.add(tmp_path / "a")
    refused("no complete, plain tar", str(tmp_path / "x.tar"))
    (tmp_path / "y.parquet").write_bytes(b"PAR1 cut")
    refused("several kinds", str(tmp_path / "{x.tar,y.parquet}"))
    refused("no complete Parquet file", str(tmp_path / "y.parquet"))
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), tmp_path / "y.parquet")
    refused(r"has columns \['text', 'label'\]", str(tmp_path / "y.parquet"))
    for name in ("x.tar", "z.tar"):
        write_tar(tmp_path / name, **{"a__1.png": picture()})
    refused("hold 'a/1.png' twice", str(tmp_path / "{x,z}.tar"))


def test_remote_tars_are_read_in_place(tmp_path, some_images):
    url = f"memory://{uuid.uuid4().hex}"
    for number in range(2):
        path = tmp_path / "part.tar"
        write_tar(path, **{k.replace("/", "__"): v for k, v in list(some_images.items())[number::2]})
        files.write_bytes(f"{url}/{number}.tar", path.read_bytes())
    for images in (url, f"{url}/*.tar", f"{url}/{{0..1}}.tar"):
        listing = list_images(images)
        assert keys_of(listing) == sorted(some_images)
        assert listing.read(3) == some_images[sorted(some_images)[3]]
    files.remove(url)
