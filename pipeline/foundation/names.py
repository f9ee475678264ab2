"""Names that strangers chose: of classes and images, in a data set, a card or a manifest.

As such they stay what they are. Whoever makes a file or folder of one calls `safe_name`.
"""

import hashlib
import re

_CONTROL = r"\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069"  # also those that turn the direction of text
_QUOTED = re.compile(rf'["%*/:<>?\\|{_CONTROL}\ud800-\udfff]|^[. ]|[. ]\Z')
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]) *(\.|\Z)", re.IGNORECASE)  # files on Windows, always
_CLIMBS = re.compile(r"\0|(^|[/\\])\.\.([/\\]|\Z)")
_LONGEST = 200  # bytes; file systems allow 255


def safe_name(text: str) -> str:
    """The name of one file or folder for any text, on any file system and in any URL; another one for another text.

    A harmless text is its own name. Separators, control characters, what file systems or URLs reserve, and a dot or
    space at an end become `%` and two hexadecimal digits per byte of UTF-8. So a name is never empty, hidden, `.` or
    `..`. A name of more than 200 bytes is cut and ends in `%~` and a digest.
    """
    name = _QUOTED.sub(lambda found: _quoted(found[0]), text) or "%"
    if _DEVICE.match(name):
        name = _quoted(name[0]) + name[1:]
    if len(name.encode()) > _LONGEST:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        name = f"{name.encode()[:150].decode(errors='ignore')}%~{digest[:40]}"
    return name


def _quoted(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def slug(title: str) -> str:
    """A folder's name for a title: in lower case, with one dash for each run of characters but a-z, 0-9 and dots."""
    return re.sub(r"[^a-z0-9.]+", "-", title.lower()).strip("-")


def leads_out(path: str) -> bool:
    """Whether a relative path would leave the folder that it is appended to, or holds a NUL byte."""
    return (".." in path or "\0" in path) and bool(_CLIMBS.search(path))
