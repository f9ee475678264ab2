"""Class folders: ROOT/<class>/**/<image>."""

from collections.abc import Iterator

from rdpm.pipeline.foundation import files
from rdpm.pipeline.images.sources.entry import Entry, is_image


def entries(root: str) -> Iterator[Entry]:
    """Images of every class folder. Hidden files, and files without the suffix of an image, are skipped."""
    for class_name in files.list_folders(root):
        folder = files.join(root, class_name)
        for name, size in files.list_files(folder):
            if is_image(name):
                yield Entry(class_name, name, size, files.join(folder, name))
