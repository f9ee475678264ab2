import io
import uuid

import pytest
from PIL import Image

from pipeline import files
from pipeline.images.sources import open_folder


def picture(fmt: str = "PNG", size: int = 4, level: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (size, size), level).save(buffer, fmt)
    return buffer.getvalue()


def lay(root: str, *names: str) -> None:
    for name in names:
        files.write_bytes(files.join(root, name), picture("JPEG" if name.lower().endswith("g") else "PNG"))


@pytest.fixture(params=["local", "memory"])
def root(request, tmp_path):
    """An empty place for class folders, on this machine and elsewhere."""
    if request.param == "local":
        yield str(tmp_path)
        return
    url = f"memory://{uuid.uuid4().hex}"
    yield url
    files.remove(url)


def test_listing_is_sorted_whatever_the_order_of_writing(tmp_path):
    names = ["b/2.png", "a/10.png", "b/1.png", "a/9.png", "a b/1.png", "a/sub/1.png"]
    for folder, order in (("one", names), ("other", names[::-1])):
        lay(str(tmp_path / folder), *order)
    one, other = open_folder(str(tmp_path / "one")), open_folder(str(tmp_path / "other"))
    assert one.keys == other.keys == tuple(sorted(names))
    assert one.digest == other.digest


def test_labels_are_places_among_the_sorted_class_names(root):
    lay(root, "zebra/1.png", "ant/2.png", "ant/deep/er/3.png", "bee/1.png")
    source = open_folder(root)
    assert source.classes == ("ant", "bee", "zebra")
    assert dict(zip(source.keys, source.labels, strict=True)) == {
        "zebra/1.png": 2,
        "ant/2.png": 0,
        "ant/deep/er/3.png": 0,
        "bee/1.png": 1,
    }


def test_every_listed_image_can_be_read_at_its_url_and_has_its_size(root):
    lay(root, "a/1.png", "b/x/2.jpg")
    source = open_folder(root)
    assert len(source) == 2
    for index, size in enumerate(source.sizes):
        assert len(files.read_bytes(source.url(index))) == size > 0


def test_hidden_files_other_suffixes_and_files_outside_classes_are_passed_over(root):
    lay(root, "a/1.png", "a/2.JPG", "a/3.JpEg")
    lay(root, "a/.hidden.png", ".cache/1.png", "a/.thumbs/1.png", "a/notes.txt", "a/png", "loose.png", "c/readme.md")
    source = open_folder(root)
    assert source.keys == ("a/1.png", "a/2.JPG", "a/3.JpEg")
    assert source.classes == ("a",)


def test_a_hidden_folder_on_the_way_to_the_root_hides_nothing(tmp_path):
    lay(str(tmp_path / ".data"), "a/1.png")
    assert open_folder(str(tmp_path / ".data")).keys == ("a/1.png",)


def test_a_trailing_slash_is_the_same_source(root):
    lay(root, "a/1.png")
    assert open_folder(root + "/") == open_folder(root)


def test_a_missing_folder_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere' does not exist"):
        open_folder(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("names", [[], ["loose.png"], ["a/notes.txt", "a/.hidden.png"]])
def test_a_folder_without_images_in_class_folders_is_refused_by_name(tmp_path, names):
    lay(str(tmp_path), *names)
    with pytest.raises(ValueError, match=f"{tmp_path}' holds no images"):
        open_folder(str(tmp_path))


def test_the_digest_depends_on_keys_labels_and_sizes_and_not_on_the_place(tmp_path):
    def digest(folder: str, *names: str, **contents: bytes) -> str:
        lay(str(tmp_path / folder), *names)
        for name, data in contents.items():
            files.write_bytes(str(tmp_path / folder / "a" / f"{name}.png"), data)
        return open_folder(str(tmp_path / folder)).digest

    digests = [
        digest("1", "a/1.png", "b/1.png"),
        digest("2", "a/2.png", "b/1.png"),
        digest("3", "a/1.png", "c/1.png"),
        digest("4", "a/1.png", "b/1.png", "b/2.png"),
        digest("5", "b/1.png", **{"1": picture("BMP")}),
    ]
    assert len(set(digests)) == len(digests)
    assert digest("6", "a/1.png", "b/1.png") == digests[0]
