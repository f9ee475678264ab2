"""What the subcommands share: CONFIG.yaml and key=value into a config."""

from typing import TypeVar

from rdpm.pipeline.foundation.config import load_config

T = TypeVar("T")


def parse(kind: type[T], job: str, arguments: list[str]) -> T:
    """`[CONFIG.yaml] [key=value ...]` to the job's config. Raises ValueError on anything else."""
    paths = [a for a in arguments if "=" not in a]
    if len(paths) > 1 or any(a.startswith("-") for a in arguments):
        raise ValueError(f"arguments {' '.join(arguments)!r} are not [CONFIG.yaml] [key=value ...]")
    return load_config(kind, job, paths[0] if paths else None, [a for a in arguments if "=" in a])
