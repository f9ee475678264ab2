"""Listings of images: their order, labels and digest, the same from every kind of source."""

import os
import subprocess

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rdpm.pipeline.foundation import files
from rdpm.pipeline.images.decode import Reject
from rdpm.pipeline.images.listing import Catalog, Listing, list_images, read_images
from rdpm.pipeline.images.sources.source import open_source
from tests.faults.mounts import small_disk
from tests.pipeline.images.laid import keys_of, lay, picture


def test_listing_is_sorted_whatever_the_order_of_writing(tmp_path):
    names = ["b/2.png", "a/10.png", "b/1.png", "a/9.png", "a b/1.png", "a/sub/1.png"]
    for folder, order in (("one", names), ("other", names[::-1])):
        lay(str(tmp_path / folder), *order)
    one, other = list_images(str(tmp_path / "one")), list_images(str(tmp_path / "other"))
    assert keys_of(one) == keys_of(other) == sorted(names, key=lambda name: (name.split("/")[0], name))
    assert one.digest == other.digest


def test_labels_are_positions_among_the_sorted_class_names(root):
    lay(root, "zebra/1.png", "ant/2.png", "ant/deep/er/3.png", "bee/1.png")
    source = list_images(root)
    assert source.classes == ("ant", "bee", "zebra")
    assert dict(zip(keys_of(source), source.table["label"].to_pylist(), strict=True)) == {
        "zebra/1.png": 2,
        "ant/2.png": 0,
        "ant/deep/er/3.png": 0,
        "bee/1.png": 1,
    }


def test_every_listed_image_can_be_read_at_its_url_and_has_its_size(root):
    lay(root, "a/1.png", "b/x/2.jpg")
    source = list_images(root)
    assert len(source) == 2
    for index, size in enumerate(source.table["size"].to_pylist()):
        assert len(source.read(index)) == size > 0


def test_hidden_files_other_suffixes_and_files_outside_classes_are_skipped(root):
    lay(root, "a/1.png", "a/2.JPG", "a/3.JpEg")
    lay(root, "a/.hidden.png", ".cache/1.png", "a/.thumbs/1.png", "a/notes.txt", "a/png", "loose.png", "c/readme.md")
    source = list_images(root)
    assert keys_of(source) == ["a/1.png", "a/2.JPG", "a/3.JpEg"]
    assert source.classes == ("a",)


def test_a_hidden_folder_above_the_root_hides_nothing(tmp_path):
    lay(str(tmp_path / ".data"), "a/1.png")
    assert keys_of(list_images(str(tmp_path / ".data"))) == ["a/1.png"]


def test_a_trailing_slash_is_the_same_source(root):
    lay(root, "a/1.png")
    assert list_images(root + "/") == list_images(root)


def test_a_missing_folder_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere' do not exist"):
        list_images(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("names", [[], ["loose.txt"], ["a/notes.txt", "a/.hidden.png"], ["loose.png", "a/notes.txt"]])
def test_a_folder_without_images_in_class_folders_is_refused_by_name(tmp_path, names):
    lay(str(tmp_path), *names)
    with pytest.raises(ValueError, match=f"{tmp_path}' hold no images"):
        list_images(str(tmp_path))


def test_images_in_one_folder_without_class_folders_are_of_one_class(anywhere):
    lay(anywhere, "2.png", "1.png", ".hidden.png", "notes.txt")
    source = list_images(anywhere)
    assert keys_of(source) == ["all/1.png", "all/2.png"]
    assert source.classes == ("all",)
    assert source.read(1) == files.read_bytes(files.join(anywhere, "2.png"))


def test_the_digest_depends_on_keys_labels_and_sizes_and_not_on_the_location(tmp_path):
    def digest(folder: str, *names: str, **contents: bytes) -> str:
        lay(str(tmp_path / folder), *names)
        for name, data in contents.items():
            files.write_bytes(str(tmp_path / folder / "a" / f"{name}.png"), data)
        return list_images(str(tmp_path / folder)).digest

    digests = [
        digest("1", "a/1.png", "b/1.png"),
        digest("2", "a/2.png", "b/1.png"),
        digest("3", "a/1.png", "c/1.png"),
        digest("4", "a/1.png", "b/1.png", "b/2.png"),
        digest("5", "b/1.png", **{"1": picture("BMP")}),
    ]
    assert len(set(digests)) == len(digests)
    assert digest("6", "a/1.png", "b/1.png") == digests[0]


def test_every_kind_of_source_gives_the_same_listing_and_the_same_bytes(tmp_path, write_source, some_images):
    listing = list_images(write_source(tmp_path / "source", some_images))
    assert keys_of(listing) == sorted(some_images)
    assert listing.classes == ("digit 0", "digit 1", "digit 2")
    assert [listing.label(i) for i in range(len(listing))] == [int(key[6]) for key in sorted(some_images)]
    order = [7, 0, 39, 7, 12]
    assert [listing.read(i) for i in order] == [some_images[sorted(some_images)[i]] for i in order]
    found = dict(read_images(listing.table))
    assert [found[i] for i in range(len(listing))] == [some_images[key] for key in sorted(some_images)]
    class_folders = tmp_path / "folders"
    for key, data in some_images.items():
        files.write_bytes(f"{class_folders}/{key}", data)
    assert listing.digest == list_images(str(class_folders)).digest
    received = Listing.from_bytes(listing.to_bytes())
    assert received == listing
    assert [received.read(i) for i in order] == [listing.read(i) for i in order]


def test_a_restart_recognizes_containers_by_names_and_sizes_but_never_class_folders(
    tmp_path, write_source, some_images
):
    url = write_source(tmp_path / "source", some_images)
    source = open_source(url)
    assert source.fingerprint == open_source(url).fingerprint
    assert bool(source.fingerprint) == bool(source.containers)
    for container, size in source.containers[:1]:
        with open(container, "ab") as file:
            file.write(bytes(1))
        assert size + 1 == files.size(container)
        if container.endswith(".tar"):
            assert open_source(url).fingerprint != source.fingerprint


def test_parquet_without_keys_keeps_its_order_and_names_rows_by_file_and_number(tmp_path, some_images):
    keys = sorted(some_images, key=lambda key: some_images[key])
    for number, part in enumerate((keys[:25], keys[25:])):
        image = pa.array([{"bytes": some_images[k], "path": None} for k in part])
        table = pa.table({"image": image, "label": [int(k[6]) for k in part]})
        pq.write_table(table, tmp_path / f"{number}.parquet", row_group_size=4)
    listing = list_images(str(tmp_path))
    expected = [f"{n // 25}.parquet/{n % 25:09d}" for n in range(40)]
    assert keys_of(listing) == expected
    assert [listing.read(i) for i in range(len(listing))] == [some_images[k] for k in keys]
    assert [listing.classes[listing.label(i)] for i in range(len(listing))] == [k[6] for k in keys]


def test_classes_that_are_numbers_are_sorted_as_numbers(root):
    lay(root, "10/1.png", "9/1.png", "100/1.png")
    assert list_images(root).classes == ("9", "10", "100")
    lay(root, "x/1.png")
    assert list_images(root).classes == ("10", "100", "9", "x")


def test_the_listing_of_batches_is_the_listing_in_memory(tmp_path, monkeypatch):
    lay(str(tmp_path), *(f"{n % 3}/{n}.png" for n in range(20)))
    monkeypatch.setattr("rdpm.pipeline.images.listing._BATCH", 7)
    catalog = Catalog(open_source(str(tmp_path)))
    batches = list(catalog.batches())
    assert [len(batch) for batch in batches] == [7, 7, 6]
    assert pa.Table.from_batches(batches).equals(list_images(str(tmp_path)).table)


LISTING = """
from rdpm.pipeline.images.listing import Catalog
from rdpm.pipeline.images.sources.entry import Entry
from rdpm.pipeline.images.sources.source import Source

names = (f"{n * 7919 % 30_000:0100d}.png" for n in range(30_000))
source = Source("/images", (), True, lambda: (Entry(f"class {name[-5]}", name, 9, "/images") for name in names))
try:
    print(sum(len(batch) for batch in Catalog(source).batches()))
except ValueError as problem:
    print(problem)
"""


@pytest.mark.slow
def test_a_full_disk_ends_a_listing_with_one_sentence(tmp_path, python, repository):
    """In a process of its own, because SQLite looks up its temporary folder once."""
    said = []
    with small_disk(tmp_path / "disk", 1000) as disk:
        for kib in (1000, 30_000):
            disk.resize(kib)
            environment = {**os.environ, "SQLITE_TMPDIR": str(disk.folder)}
            command = [*python, "-c", LISTING]
            done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=True)
            said.append(done.stdout.strip())
    assert said == [
        "the list of images '/images' has no room in the temporary folder of SQLite (database or disk is full); set "
        "SQLITE_TMPDIR to a folder with more",
        "30000",
    ]


def test_an_image_that_changed_or_vanished_since_it_was_listed_is_rejected(tmp_path):
    lay(str(tmp_path), "a/1.png", "a/2.png", "a/3.png")
    listing = list_images(str(tmp_path))
    files.write_bytes(str(tmp_path / "a" / "1.png"), picture() + b"x")
    files.remove(str(tmp_path / "a" / "2.png"))
    found = dict(read_images(listing.table))
    assert [str(found[0]), str(found[1])] == ["changed since it was listed", "gone since it was listed"]
    assert found[2] == files.read_bytes(str(tmp_path / "a" / "3.png"))
    with pytest.raises(Reject, match="changed"):
        listing.read(0)
