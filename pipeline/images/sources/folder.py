"""Class folders: ROOT/<class>/**/<image>. Links to folders are followed, those of classes and those below them.

Images that lie in ROOT itself, beside no folder, are of one class.
"""

import os
from collections.abc import Iterable, Iterator

from rdpm.pipeline.foundation import files
from rdpm.pipeline.images.sources.entry import Entry, is_image

_ONE_CLASS = "all"


def entries(root: str) -> Iterator[Entry]:
    """Images of every class folder. Hidden files, and files without the suffix of an image, are skipped.

    Raises ValueError for a link to a folder that holds the link.
    """
    classes = files.list_folders(root)
    if not classes:
        yield from _loose(root)
    folders = [files.join(root, class_name) for class_name in classes]
    listed: Iterable[Iterable[tuple[str, int]]]
    if files.is_local(root):
        above = (_identity(root),)
        listed = (_below(folder, "", above) for folder in folders)
    else:
        listed = files.in_parallel(files.list_files, folders)
    for class_name, folder, found in zip(classes, folders, listed, strict=True):
        for name, size in found:
            if is_image(name):
                yield Entry(class_name, name, size, files.join(folder, name))


def _loose(root: str) -> Iterator[Entry]:
    names = [name for name in files.list_names(root) if is_image(name)]
    urls = [files.join(root, name) for name in names]
    for name, url, size in zip(names, urls, files.in_parallel(files.size, urls), strict=True):
        yield Entry(_ONE_CLASS, name, size, url)


def _below(folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, int]]:
    """(prefix and name, bytes) of every file below a local folder. above: the identities of the folders around it."""
    here = _identity(folder)
    if here in above:
        raise ValueError(f"{folder!r} is a link to a folder that holds it, so its images have no end; remove the link")
    with os.scandir(folder) as listed:
        for entry in listed:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _below(entry.path, f"{prefix}{entry.name}/", (*above, here))
            elif entry.is_file() or entry.is_symlink():  # a link to nothing is an image that is gone, not a pipe
                yield prefix + entry.name, entry.stat(follow_symlinks=entry.is_file()).st_size


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
