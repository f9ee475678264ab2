"""A part of a source, named by a short YAML file, so that pictures are held out without moving a file.

    images: /data/drawings          # any source that is no part itself
    only: held-out.txt              # take the pictures with these keys
    without: [unusable.txt]         # leave out those with these

A file of keys has one key per line, `<class>/<name>` as everywhere, and lies where the YAML file says, seen from its
own folder. Classes are those of the whole source: so all parts of a source give a class the same label.
"""

import posixpath
from dataclasses import dataclass

import yaml

from rdpm.pipeline.foundation import files
from rdpm.storage_schemas.canonical import digest_of

SUFFIXES = (".yaml", ".yml")
_KEYS = ("images", "only", "without")
_WANTED = "write images: SOURCE, and the names of files of keys under only: or without:"


@dataclass(frozen=True)
class Selection:
    """Which pictures of a source a part has."""

    images: str
    """Path, URL or pattern of the source."""
    only: frozenset[str] | None
    """Keys to take; None for all."""
    without: frozenset[str]
    """Keys to leave out."""

    def __contains__(self, key: str) -> bool:
        return (self.only is None or key in self.only) and key not in self.without

    @property
    def digest(self) -> str:
        """Digest of the keys."""
        return digest_of({"only": self.only and sorted(self.only), "without": sorted(self.without)})


def read_selection(url: str) -> Selection:
    """Read the YAML file of a part and its files of keys. Raises ValueError, which names what is wrong."""
    try:
        tree = yaml.safe_load(files.read_bytes(url))
    except yaml.YAMLError as error:
        raise ValueError(f"images {url!r} is not YAML ({' '.join(str(error).split())}); {_WANTED}") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("images"), str) or not tree.keys() <= set(_KEYS):
        raise ValueError(f"images {url!r} describe no part of a source; {_WANTED}")
    if tree["images"].endswith(SUFFIXES):
        raise ValueError(f"images {url!r} are a part of {tree['images']!r}, which is a part itself; name its source")
    folder = posixpath.dirname(url)
    only, without = (_keys(tree.get(name, []), folder, url) for name in ("only", "without"))
    return Selection(tree["images"], only if "only" in tree else None, without)


def _keys(names: object, folder: str, url: str) -> frozenset[str]:
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"images {url!r} describe no part of a source; {_WANTED}")
    keys: set[str] = set()
    for name in names:
        try:
            text = files.read_bytes(files.join(folder, name)).decode()
        except FileNotFoundError:
            raise ValueError(f"{files.join(folder, name)!r}, which {url!r} names, does not exist; restore it") from None
        except UnicodeDecodeError:
            raise ValueError(f"{files.join(folder, name)!r} is not UTF-8; write one key per line") from None
        keys.update(line for line in text.split("\n") if line)
    return frozenset(keys)
