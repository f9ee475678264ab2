"""Writes the results into docs/benchmarks.md, between two markers."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import Part
from benchmarks.gpu.running import read

BEGIN, END = "<!-- gpu: written by `make gpu` from here -->", "<!-- gpu: to here -->"
_NEVER = "*never run"
_ON = ("device", "driver", "torch, CUDA", "commit")


@dataclass(frozen=True)
class Table:
    """How the results of one kind of part are shown."""

    name: str
    """What the names of its parts begin with."""
    title: str
    """Its first heading."""
    keys: tuple[str, ...]
    """Keys of the printed JSON, by column; a nested object fills one cell."""


TABLES = (
    Table("tests", "tests", ("passed", "failed", "skipped")),
    Table("determinism", "deterministic mode", ("price", "bit_exact", "bit_exact_without")),
    Table("sample", "sampling", ("images_per_s", "gemm_share", "tflops", "peak_gib")),
    Table("tokenizer", "tokenizer's step", ("images_per_s", "gemm_share", "mfu", "peak_gib", "parts")),
    Table(
        "train",
        "generator's step",
        (
            "images_per_s",
            "mfu",
            "gemm_share",
            "gradient_share",
            "forward_share",
            "peak_gib",
            "data_wait",
            "noise_share",
        ),
    ),
)


def write_tables(page: Path, parts: Sequence[Part], out: Path) -> None:
    """Write the tables of all parts. A row without a new result stays as it is in the page."""
    text = page.read_text()
    before, found, rest = text.partition(BEGIN)
    old, end, after = rest.partition(END)
    if not (found and end):
        raise ValueError(f"{page} has no lines {BEGIN!r} and {END!r} to write the tables between")
    tables = [_table(table, parts, out, _rows(old)) for table in TABLES]
    fresh = f"{before}{BEGIN}\n\n" + "\n".join(tables) + f"\n{END}{after}"
    if fresh != text:
        written = page.with_suffix(".new")
        written.write_text(fresh)
        os.replace(written, page)


def _table(table: Table, parts: Sequence[Part], out: Path, old: dict[tuple[str, str], list[str]]) -> str:
    heads = [table.title, *(key.replace("_", " ") for key in table.keys), "seconds", *_ON]
    lines = [heads, ["---"] * len(heads)]
    for part in parts:
        kind, _, row = part.name.partition("/")
        if kind == table.name:
            result = read(out, part)
            kept = old.get((table.title, row), [])
            if result is not None:
                lines.append([row, *_cells(table, result)])
            elif len(kept) == len(heads) and not kept[1].startswith(_NEVER):
                lines.append(kept)
            else:
                why = f": {', '.join(part.missing)} is not installed" if part.missing else ""
                lines.append([row, f"{_NEVER}{why}*", *[""] * (len(heads) - 2)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(table: Table, result: dict[str, Any]) -> list[str]:
    """A row without its first cell."""
    printed = result["printed"] or {}
    values = [shown(printed.get(key)) for key in table.keys]
    if result["timed_out"]:
        values[0] = f"**stopped after {result['limit']} s**"
    elif result["exit_code"]:
        lines = [line for line in result["tail"].splitlines() if line.strip()]
        values[0] = f"**failed:** {_plain(lines[-1]) if lines else 'exit code ' + str(result['exit_code'])}"
    made = result["machine"]
    where = [made["device"] or "none", made["driver"], f"{made['torch']}, {made['cuda']}", made["commit"]]
    return [*values, shown(result["seconds"]), *where]


def shown(value: Any) -> str:
    """A value as a cell: three digits of numbers; a nested object as `key value`, comma-separated."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return "; ".join(
            f"{key}: {shown(inner)}" if isinstance(inner, dict) else f"{key} {shown(inner)}"
            for key, inner in value.items()
        )
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return _plain(str(value))


def _plain(text: str) -> str:
    """Text that fits one cell."""
    return re.sub(r"[|`\s]+", " ", text).strip()[:160]


def _rows(text: str) -> dict[tuple[str, str], list[str]]:
    """Rows of tables by the table's first heading and their own first cell."""
    found: dict[tuple[str, str], list[str]] = {}
    title = None
    for line in text.splitlines():
        if not line.startswith("|"):
            title = None
            continue
        cells = [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split(" | ")]
        title = title or cells[0]
        found[title, cells[0]] = cells
    return found
