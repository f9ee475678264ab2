"""Builders of HTML. They escape the text they get and return markup. Pages have no scripts and load nothing."""

import base64
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

_STYLE = """
:root { color-scheme: light; --ink: #1f2430; --soft: #626b7a; --line: #e3e6ec; --accent: #2f5d8a; }
* { box-sizing: border-box; }
body { margin: 0; background: #fafbfc; color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
header { padding: 1rem 0 .5rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.3rem; margin: 0 0 .25rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .5rem; }
p { margin: 0 0 1rem; max-width: 46rem; }
.lead, section > p, small, figcaption, summary { color: var(--soft); }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 1.25rem; margin: 1.25rem 0; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .45rem .75rem .45rem 0; border-top: 1px solid var(--line); }
thead th { border-top: 0; font-size: .85rem; font-weight: 600; color: var(--soft); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; padding-right: 0; }
th.number { white-space: normal; }
td.number + td.number, th.number + th.number { padding-left: 1rem; }
.wide th:first-child { width: 100%; min-width: 9rem; }
.wide th.number { min-width: 5.5rem; vertical-align: bottom; }
td small { display: block; line-height: 1.4; max-width: 40rem; }
.wide { overflow-x: auto; }
.facts { table-layout: fixed; font-size: .85rem; }
.facts td { overflow-wrap: anywhere; font-family: ui-monospace, monospace; }
.facts td:first-child { width: 38%; color: var(--soft); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); gap: 1rem; }
.charts img, .full img { width: 100%; height: auto; display: block; }
.grid { display: grid; gap: clamp(2px, .6vw, 6px); align-items: center; justify-content: start; }
.grid img { width: 100%; display: block; image-rendering: pixelated; }
.grid .label { font-size: .8rem; color: var(--soft); text-align: center; overflow-wrap: anywhere; }
.grid .row { text-align: right; padding-right: .3rem; max-width: 7rem; overflow-wrap: break-word; }
figure { margin: 0; }
figcaption { font-size: .75rem; text-align: center; line-height: 1.2; padding-top: 2px; }
.pairs { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); gap: 2rem; }
details { border-top: 1px solid var(--line); padding: .5rem 0; }
summary { cursor: pointer; font-weight: 600; }
@media (max-width: 600px) {
  .facts td, .facts td:first-child { display: block; width: auto; padding: .1rem 0; }
  .facts td + td { border-top: 0; }
}
"""


@dataclass(frozen=True)
class Picture:
    """One picture of a grid."""

    pixels: np.ndarray
    """(H, W, C) uint8, where C is 1 or 3."""
    alt: str
    """What it shows, for those who cannot see it."""
    caption: str = ""
    """A few words below it; may be empty."""


def escape(text: object) -> str:
    """Any value as text that is safe in markup and in a quoted attribute."""
    return html.escape(str(text), quote=True)


def png(pixels: np.ndarray) -> bytes:
    """Pixels (H, W, 1 or 3) uint8 as a PNG."""
    sink = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(sink, "PNG", optimize=True)
    return sink.getvalue()


def image(data: bytes, alt: str) -> str:
    """An <img> that contains its PNG."""
    return f'<img src="data:image/png;base64,{base64.b64encode(data).decode()}" alt="{escape(alt)}">'


def grid(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Picture]]], cell: int = 80) -> str:
    """Pictures in labelled rows, under column heads if there are any. cell: a picture's largest width in CSS pixels."""
    width = max(len(pictures) for _, pictures in rows)
    cells = ["<div></div>", *(f'<div class="label">{escape(c)}</div>' for c in columns)] if columns else []
    for label, pictures in rows:
        cells.append(f'<div class="label row">{escape(label)}</div>')
        cells += [_cell(picture) for picture in pictures]
        cells += ["<div></div>"] * (width - len(pictures))
    style = f"grid-template-columns:auto repeat({width},minmax(0,{cell}px))"
    return f'<div class="grid" style="{style}">{"".join(cells)}</div>'


def _cell(picture: Picture) -> str:
    shown = image(png(picture.pixels), picture.alt)
    if not picture.caption:
        return shown
    return f"<figure>{shown}<figcaption>{escape(picture.caption)}</figcaption></figure>"


def numbers(heads: Sequence[str], rows: Sequence[tuple[str, str, Sequence[str]]]) -> str:
    """A table. rows: (name, explanation, one number for each head after the first)."""
    head = f"<th>{escape(heads[0])}</th>" + "".join(f'<th class="number">{escape(h)}</th>' for h in heads[1:])
    body = []
    for name, explanation, values in rows:
        small = f"<small>{escape(explanation)}</small>" if explanation else ""
        cells = "".join(f'<td class="number">{escape(value)}</td>' for value in values)
        body.append(f"<tr><td>{escape(name)}{small}</td>{cells}</tr>")
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def facts(title: str, rows: Sequence[tuple[str, str]]) -> str:
    """A table of names and values, below a title that opens it."""
    body = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows)
    return folded(title, f'<table class="facts"><tbody>{body}</tbody></table>')


def folded(title: str, markup: str) -> str:
    """Markup below a title that opens it."""
    return f"<details><summary>{escape(title)}</summary>{markup}</details>"


def charts(images: Sequence[str]) -> str:
    """Charts, as many side by side as the width allows."""
    return f'<div class="charts">{"".join(images)}</div>'


def full_width(image: str) -> str:
    """One image as wide as the section."""
    return f'<div class="full">{image}</div>'


def side_by_side(parts: Sequence[tuple[str, str]]) -> str:
    """Blocks of (heading, markup) beside each other, or below each other on a narrow screen."""
    return '<div class="pairs">' + "".join(f"<div><h3>{escape(h)}</h3>{markup}</div>" for h, markup in parts) + "</div>"


def heading(text: str) -> str:
    """A heading inside a section."""
    return f"<h3>{escape(text)}</h3>"


def paragraph(text: str) -> str:
    """A paragraph of text."""
    return f"<p>{escape(text)}</p>"


def section(title: str, lead: str, *markup: str) -> str:
    """A block with a title and a sentence that says how to read it."""
    return f"<section><h2>{escape(title)}</h2><p>{escape(lead)}</p>{''.join(markup)}</section>"


def page(title: str, lead: str, sections: Sequence[str]) -> str:
    """The complete document."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f'<body><main><header><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p></header>'
        f"{''.join(sections)}</main></body></html>\n"
    )


def flatten(tree: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested dicts as rows of (dotted name, value). Values other than text are written as JSON."""
    if isinstance(tree, dict) and tree:
        return [row for key, value in tree.items() for row in flatten(value, f"{name}.{key}" if name else str(key))]
    return [(name, tree if isinstance(tree, str) else json.dumps(tree, ensure_ascii=False))]
