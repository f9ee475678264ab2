"""One interface to every kind of source. The content of a path or URL tells which kind it is."""

import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from rdpm.pipeline.foundation import files
from rdpm.pipeline.images.sources import archive, folder, parquet
from rdpm.pipeline.images.sources.entry import Entry, is_utf8
from rdpm.pipeline.images.sources.selection import SUFFIXES, Selection, read_selection
from rdpm.storage_schemas.canonical import digest_of

_WANTED = "give a folder of class folders, or tar files, or Parquet files"


@dataclass(frozen=True)
class Source:
    """Labelled images that have not been listed yet."""

    url: str
    """Path, URL or pattern of the images."""
    containers: tuple[tuple[str, int], ...]
    """(URL, bytes) of every tar or Parquet file; empty for class folders."""
    by_class: bool
    """Whether images are sorted by class and key; those in Parquet files without keys keep their order."""
    entries: Callable[[], Iterator[Entry]]
    """A function that finds every image, in any order."""
    selection: Selection | None = None
    """Which of them are meant; None for all."""

    @property
    def fingerprint(self) -> str:
        """Digest of the names and sizes of the containers; empty for class folders, which must be listed to tell."""
        part = {"part": self.selection.digest} if self.selection else {}
        return digest_of({"url": self.url, "containers": self.containers} | part) if self.containers else ""


def open_source(images: str) -> Source:
    """Recognize class folders, tar files (of class tars, class folders or WebDataset samples) and Parquet files.

    images: a folder, a file, or a pattern such as `s3://bucket/train-{000..146}.tar` or `data/*.parquet`; or the YAML
    file of a part of these (`selection`). Raises ValueError when there is nothing, none of these kinds, or several
    kinds together.
    """
    root = files.absolute(images.rstrip("/"))
    if root.endswith(SUFFIXES) and files.is_file(root):
        selection = read_selection(root)
        return replace(open_source(selection.images), url=root, selection=selection)
    if re.search(r"[*?{]", root) and not files.exists(root):
        urls = _expand(root)
    elif files.is_file(root):
        urls = [root]
    elif files.exists(root):
        urls = [files.join(root, name) for name in files.list_names(root) if name.endswith((".tar", ".parquet"))]
        if not urls:
            return Source(root, (), True, partial(folder.entries, root))
        if files.list_folders(root):
            raise ValueError(f"images {images!r} hold both folders and files like {_base(urls[0])}; {_WANTED}")
    else:
        raise ValueError(f"images {images!r} do not exist; {_WANTED}")
    return _of_containers(images, root, urls)


def _expand(pattern: str) -> list[str]:
    """URLs that match a pattern, sorted: `{000..146}` and `{a,b}` are written out, `*` and `?` are looked up."""
    braces = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if braces:
        first, last, words = braces.groups()
        numbers = (str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)) if first else ()
        choices = words.split(",") if words else numbers
        return sorted({url for choice in choices for url in _expand(pattern.replace(braces[0], choice, 1))})
    return files.glob(pattern) if re.search(r"[*?]", pattern) else [pattern]


def _of_containers(images: str, root: str, urls: list[str]) -> Source:
    unreadable = [url for url in urls if not is_utf8(url)]
    if unreadable:
        raise ValueError(f"the name of {unreadable[0]!r} is not UTF-8; rename it")
    kinds = {url.rpartition(".")[2] for url in urls}
    if not urls:
        raise ValueError(f"images {images!r} match no file; {_WANTED}")
    if len(kinds) > 1:
        raise ValueError(f"images {images!r} are of several kinds ({', '.join(sorted(kinds))}); {_WANTED}")
    if not kinds <= {"tar", "parquet"} and root.startswith(("http://", "https://")):
        raise ValueError(f"images {images!r} are neither tar nor Parquet files; of a web server give the URLs of those")
    if not kinds <= {"tar", "parquet"}:
        raise ValueError(f"images {images!r} are neither tar nor Parquet files; {_WANTED}")
    try:
        containers = tuple(zip(urls, files.in_parallel(files.size, urls), strict=True))
    except FileNotFoundError as error:
        raise ValueError(f"images {images!r} do not exist: {error}; {_WANTED}") from None
    if kinds == {"tar"}:
        return Source(root, containers, True, partial(archive.entries, containers))
    keyed = set(files.in_parallel(parquet.has_keys, urls))
    if len(keyed) > 1:
        raise ValueError(f"some files of {images!r} have keys and some have none; give files of one kind")
    by_class = keyed == {True}
    return Source(
        root, containers, by_class, lambda: (e for url in urls for e in parquet.entries(url, _base(url), by_class))
    )


def _base(url: str) -> str:
    return posixpath.basename(url)
