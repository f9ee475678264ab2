"""What the subcommands share: CONFIG.yaml and key=value into a config, a config into a record's settings."""

from typing import Any, TypeVar

from rdpm.pipeline.foundation.config import load_config, to_dict

T = TypeVar("T")


def parse(kind: type[T], job: str, arguments: list[str]) -> T:
    """`[CONFIG.yaml] [key=value ...]` to the job's config. Raises ValueError on anything else."""
    paths = [a for a in arguments if "=" not in a]
    if len(paths) > 1 or any(a.startswith("-") for a in arguments):
        raise ValueError(f"arguments {' '.join(arguments)!r} are not [CONFIG.yaml] [key=value ...]")
    return load_config(kind, job, paths[0] if paths else None, [a for a in arguments if "=" in a])


def settings_of(config: Any, *left_out: str, **digests: Any) -> dict[str, Any]:
    """The settings that fix a result: the config without `left_out` (where and how fast), with the inputs' digests."""
    tree = {name: value for name, value in to_dict(config).items() if name not in left_out}
    return {**tree, **digests}
