import itertools
import os
import random

import pytest

from rdpm.pipeline.foundation.names import leads_out, safe_name, slug

HOSTILE = [
    "", ".", "..", "...", "../../../escaped", "/etc/passwd", "a/../../b", "..\\..\\b", "C:\\b", "a\0b", "\0", "a\nb",
    "a\n", "~", "~root", ".hidden", "a.", "a ", " a", "CON", "con.txt", "nul", "LPT1.png", "COM¹", "a::b", "s3://bucket/a",
    "a?b", "a#b", "%2e%2e", "%", "%25", "a%2Fb", "a/b", "a%b", "\udcff", "a\udc80", "\ud800", "\u202egnp.exe",
    "é", "é" * 200, "x" * 200, "x" * 201, "x" * 5000, "y" + "x" * 5000, "犬",
]  # fmt: skip
PIECES = ["..", ".", "/", "\\", "%", "%2F", "~", " ", "\0", "\n", "a", "A", "é", "\udcff", ":", "con", "nul.", "b" * 90]


def texts() -> list[str]:
    """Hostile ones, all short joins of dangerous pieces, and longer ones drawn at random."""
    draw = random.Random(0)
    joined = ["".join(parts) for length in (1, 2, 3) for parts in itertools.product(PIECES, repeat=length)]
    longer = ["".join(draw.choices(PIECES, k=draw.randint(4, 12))) for _ in range(5000)]
    return sorted({*HOSTILE, *joined, *longer})


def test_a_safe_name_is_one_plain_component_of_a_path_on_any_system():
    for text in texts():
        name = safe_name(text)
        assert name not in ("", ".", ".."), text
        assert not set(name) & set('/\\\0:<>"|?*\n'), text
        assert name.isprintable(), text
        assert not name.startswith((".", " ")), text
        assert not name.endswith((".", " ")), text
        assert name.split(".")[0].strip().upper() not in ("CON", "PRN", "AUX", "NUL", "COM1", "LPT1"), text
        assert len(name.encode()) <= 200, text  # and so it is UTF-8
        assert os.path.normpath(f"out/{name}/1.png") == f"out/{name}/1.png", text


def test_different_texts_get_different_names():
    names: dict[str, str] = {}
    for text in texts():
        assert names.setdefault(safe_name(text), text) == text


@pytest.mark.parametrize(
    "text", ["zero", "7", "tench, Tinca tinca", "n01440764", "a.b", "sea lion", "犬", "é", "~x", "x" * 200]
)
def test_a_harmless_text_is_its_own_name(text):
    assert safe_name(text) == text


def test_a_file_of_every_safe_name_can_be_written_under_its_folder_only(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for text in HOSTILE:
        (out / safe_name(text)).write_text(text, errors="surrogateescape" if "\ud800" not in text else "replace")
    assert len(list(out.iterdir())) == len(HOSTILE)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("path", "out"),
    [("..", True), ("../a", True), ("a/..", True), ("a/../b", True), ("a\\..\\b", True), ("a\0", True), ("..a", False),
     ("a..", False), ("a/b", False), ("...", False), ("CD/DVD", False), ("", False)],
)  # fmt: skip
def test_which_paths_lead_out(path, out):
    assert leads_out(path) == out


def test_folders_of_rows_are_plain():
    assert slug("RDPM, as in the paper") == "rdpm-as-in-the-paper"
    assert slug(" d12 (pow 1.5)!") == "d12-pow-1.5"
