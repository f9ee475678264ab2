"""Weights that others publish: found, downloaded, and checked by their digest."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from rdpm.pipeline.foundation import files


@dataclass(frozen=True)
class WeightsFile:
    """Published weights: a file that the user gives or torch downloads, and that is checked before it is opened."""

    setting: str
    """The config's key for its path."""
    title: str
    """Whose weights they are."""
    file: str
    """Its name."""
    sha256_prefix: str
    """The first digits of its sha256."""
    url: str
    """Where it is published."""
    publisher: str
    """Where the url comes from, in words."""

    @property
    def _fix(self) -> str:
        return f"give the path of {self.file} (from {self.publisher}) as {self.setting}"

    def read(self, path: str) -> tuple[bytes, str]:
        """The bytes and their sha256. An empty path means the file in torch's cache, downloaded if needed.

        Raises ValueError when the file is missing, cannot be downloaded, or is a different one.
        """
        path = path or self._downloaded()
        if not Path(files.local_path(path)).is_file():
            raise ValueError(f"{self.setting} {path!r} does not exist; {self._fix}")
        data = files.read_bytes(path)
        digest = hashlib.sha256(data).hexdigest()
        if not digest.startswith(self.sha256_prefix):
            raise ValueError(f"{self.setting} {path!r} has sha256 {digest[:8]}, not {self.sha256_prefix}; {self._fix}")
        return data, digest

    def _downloaded(self) -> str:
        path = Path(torch.hub.get_dir()) / "checkpoints" / self.file
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(self.url, str(path), self.sha256_prefix, progress=False)
            except (OSError, RuntimeError) as error:
                raise ValueError(f"{self.title} could not be downloaded ({error}); {self._fix}") from None
        return str(path)
