"""`make docs`: no dead links, every public name, and nothing that a reader's browser would load from elsewhere."""

import re
import subprocess
from pathlib import Path

import pytest

import rdpm

LOADED = r"<(?:script|img|iframe|source|video|audio)[^>]+src=\"([^\"]+)|<link[^>]+href=\"([^\"]+)"


@pytest.fixture(scope="module")
def site(tmp_path_factory, repository, python) -> Path:
    """The site. Warnings, such as a dead link or a page that is nowhere in the navigation, are errors."""
    site = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--fail-on-warning", "--keep-going"]
    done = subprocess.run(
        [*python, "-m", "sphinx", *options, "docs", str(site)],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return site


@pytest.mark.slow
def test_every_page_is_there_and_loads_nothing_from_elsewhere(site: Path, repository: Path) -> None:
    pages = {path.stem for path in (repository / "docs").glob("*.md")}
    assert pages <= {path.stem for path in site.glob("*.html")}
    for path in site.rglob("*.html"):
        loaded = [next(filter(None, found)) for found in re.findall(LOADED, path.read_text())]
        assert loaded
        for target in loaded:
            assert "//" not in target, f"{path.name} loads {target}"
            if not target.startswith(("data:", "#")):
                assert (path.parent / target.split("?")[0].split("#")[0]).exists(), f"{path.name} has no {target}"
    for path in site.rglob("*.css"):
        assert not re.search(r"@import|url\([\"']?(?:https?:)?//", path.read_text()), path.name


@pytest.mark.slow
def test_the_front_page_is_the_readme_with_links_to_pages(site: Path) -> None:
    page = (site / "index.html").read_text()
    assert 'href="running.html"' in page
    assert 'href="contributing.html"' in page
    assert "docs/running" not in re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL)


def test_the_page_of_docstrings_has_every_public_name(repository: Path) -> None:
    page = (repository / "docs" / "api.md").read_text()
    assert set(re.findall(r"^\.\. auto\w+:: rdpm\.(\w+)$", page, flags=re.MULTILINE)) == set(rdpm.__all__)
