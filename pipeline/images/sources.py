"""Sources of labelled images behind one record: stable sorted keys, labels from sorted class names."""

from dataclasses import dataclass

from pipeline import files
from storage_schemas.manifest import digest_of

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True)
class Source:
    """Listed images. keys: names under the root, sorted. labels: index into `classes`. sizes: bytes of each file."""

    root: str
    classes: tuple[str, ...]
    keys: tuple[str, ...]
    labels: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def digest(self) -> str:
        """Digest of every key, label and size, and of the class names."""
        rows = [f"{k}\t{y}\t{n}" for k, y, n in zip(self.keys, self.labels, self.sizes, strict=True)]
        return digest_of({"classes": self.classes, "rows": rows})

    def __len__(self) -> int:
        return len(self.keys)

    def url(self, index: int) -> str:
        """Where one image lies."""
        return files.join(self.root, self.keys[index])


def open_folder(root: str) -> Source:
    """ROOT/<class>/**/<image>. Hidden files and files without an image's suffix are passed over.

    Raises ValueError when the folder is missing or holds no such images.
    """
    root = root.rstrip("/")
    if not files.exists(root):
        raise ValueError(f"image folder {root!r} does not exist; give a folder of class folders")
    found = [(name, size) for name, size in files.list_files(root) if name.lower().endswith(SUFFIXES) and "/" in name]
    if not found:
        raise ValueError(f"image folder {root!r} holds no images in class folders; expected {root}/<class>/<image>")
    classes = tuple(sorted({name.split("/", 1)[0] for name, _ in found}))
    label_of = {name: label for label, name in enumerate(classes)}
    return Source(
        root,
        classes,
        tuple(name for name, _ in found),
        tuple(label_of[name.split("/", 1)[0]] for name, _ in found),
        tuple(size for _, size in found),
    )
