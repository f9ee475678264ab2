"""Packages that a light install lacks, and the extra of ours that brings each of them."""

import importlib.metadata
import re

_MODULES = {"scikit-image": "skimage", "scikit-learn": "sklearn"}  # imported by other names


def extra_for(error: ModuleNotFoundError) -> str | None:
    """One sentence that says which extra brings the missing module, and how to install it; None if no extra does."""
    missing = (error.name or "rdpm").partition(".")[0]
    try:
        requirements = importlib.metadata.requires("rdpm") or []
    except importlib.metadata.PackageNotFoundError:  # run from a folder, without an installation
        return None
    for requirement in requirements:  # in the order of pyproject.toml
        found = re.match(r"""([\w.-]+).*\bextra == ["']([\w-]+)["']""", requirement)
        if found and missing != "rdpm" and missing == _MODULES.get(found[1], found[1].replace("-", "_")):
            return f"{found[1]} is not installed; the extra {found[2]} brings it: pip install '.[{found[2]}]'"
    return None
