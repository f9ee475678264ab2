"""Tar files, read in place: a tar of class tars (as ILSVRC's), class folders in a tar, and WebDataset shards.

The class of an image is in the `.cls` file of its sample (WebDataset: successive files with the same name up to the
first dot are one sample). Without that it is the folder in the tar, and without a folder the name of the class tar.
"""

import itertools
import posixpath
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from rdpm.pipeline.foundation import files
from rdpm.pipeline.images.sources.entry import Entry, is_image

_BLOCK = 512


class Member(NamedTuple):
    """A regular file of a tar."""

    name: str
    """Path in the tar."""
    offset: int
    """Position of its first byte in the outermost tar."""
    size: int
    """Bytes."""


def entries(url: str) -> Iterator[Entry]:
    """Images of one tar, in its order. Raises ValueError for a truncated or compressed tar or an unlabelled image."""
    with files.open_read(url) as file:
        try:
            yield from _entries(file, 0, url, class_tar="")
        except tarfile.TarError as error:
            raise ValueError(f"{url!r} is no complete, plain tar ({error}); unpack it or make it again") from None


def _entries(file: BinaryIO, start: int, url: str, class_tar: str) -> Iterator[Entry]:
    for _, sample in itertools.groupby(_members(file, start), key=_sample):
        members = list(sample)
        label = next((_text(file, member) for member in members if member.name.endswith(".cls")), "")
        for name, offset, size in members:
            folder, _, base = name.rpartition("/")
            if name.endswith(".tar") and not class_tar:
                yield from _entries(file, offset, url, class_tar=base.removesuffix(".tar"))
            elif is_image(name) and not (label and base.count(".") > 1):  # x.mask.png is not the image of sample x
                class_name = label or folder.split("/")[0] or class_tar
                if not class_name:
                    raise ValueError(f"{name} in {url!r} has no class; add a .cls file, or put it in a class folder")
                yield Entry(class_name, name.removeprefix(f"{class_name}/"), size, url, offset)


def _sample(member: Member) -> str:
    folder, base = posixpath.split(member.name)
    return posixpath.join(folder, base.split(".")[0]) if not base.endswith(".tar") else member.name


def _text(file: BinaryIO, member: Member) -> str:
    file.seek(member.offset)
    return file.read(member.size).decode().strip()


def _members(file: BinaryIO, start: int) -> Iterator[Member]:
    """Regular files of the tar that begins at byte `start`.

    Plain headers are read here, because `tarfile` takes 40 us for each; `tarfile` reads the others.
    """
    position = start
    while True:
        file.seek(position)
        header = file.read(_BLOCK)
        if not header:
            raise tarfile.ReadError("its end mark is missing")
        if header == bytes(_BLOCK):
            return
        member = _plain(header, position)
        if member is None:
            file.seek(position)
            info = tarfile.open(fileobj=file, mode="r:").next()  # noqa: SIM115, the file is the caller's
            assert info is not None  # open() has found one
            member, regular = Member(info.name, info.offset_data, info.size), info.isreg()
        else:
            regular = True
        position = member.offset + -(-member.size // _BLOCK) * _BLOCK
        if regular:
            yield member._replace(name=posixpath.normpath(member.name).lstrip("/"))


def _plain(header: bytes, position: int) -> Member | None:
    """The member, given the POSIX header (IEEE 1003.1, ustar) of a regular file; None for any other header."""
    if header[156:157] not in (b"0", b"\0") or header[257:262] != b"ustar" or header[124] & 0x80:
        return None
    try:
        size, checksum = (int(header[a:b].strip(b"\0 "), 8) for a, b in ((124, 136), (148, 156)))
        name = header[:100].rstrip(b"\0").decode()
        prefix = header[345:500].rstrip(b"\0").decode() if header[257:263] == b"ustar\0" else ""
    except ValueError:
        return None
    if sum(header) - sum(header[148:156]) + 8 * ord(" ") != checksum:
        return None
    return Member(f"{prefix}/{name}" if prefix else name, position + _BLOCK, size)
