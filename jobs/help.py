"""The help of a command: every key of its config with type, default and meaning, read without importing the config."""

import shutil
import textwrap

from rdpm.pipeline.foundation.config_keys import Key, keys_of, parsed_configs

_WIDEST = 110
_MEANING = 6  # columns before the meaning of a key
_MUST = "must be given"


def keys_help(module: str, in_config: bool) -> str:
    """The keys that the command of this module takes, in a config too or not; empty where it takes none."""
    configs = parsed_configs(module)
    width = min(shutil.get_terminal_size((100, 24)).columns, _WIDEST)
    where = "in CONFIG.yaml or as key=value" if in_config else "as key=value"
    parts = [f"Keys, {where}, with their type and default:"] if configs else []
    for place in configs:
        if len(configs) > 1:
            parts.append(f"{place[1]}:")
        parts += [_key_help(key, width) for key in keys_of(*place)]
    return "\n\n".join(parts)


def _key_help(key: Key, width: int) -> str:
    """Two lines or more: what is written, and what it means."""
    default = _MUST if key.default is None else f"default {key.default}"
    written = f"  {key.name}={key.kind}  ({default})" if key.kind else f"  {key.name}.  (a group of keys)"
    indent = " " * _MEANING
    meaning = textwrap.wrap(key.meaning, width, initial_indent=indent, subsequent_indent=indent)
    return "\n".join([written, *meaning])
