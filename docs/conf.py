"""How `make docs` turns these pages into a site: Sphinx, with MyST for Markdown."""

import re
from pathlib import Path

import rdpm

ROOT = Path(__file__).parent.parent
OF_THE_ROOT = {"index": "README.md", "contributing": "CONTRIBUTING.md", "changelog": "CHANGELOG.md"}
"""Pages of the site whose text is a file beside docs/."""

project = "RDPM"
release = rdpm.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
default_role = "code"

myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
autoclass_content = "both"

html_theme = "furo"
html_title = f"RDPM {release}"
html_copy_source = False
html_show_sphinx = False
html_show_search_summary = False  # it fetches pages, which browsers refuse where the site is a folder


def text_of_the_root(app, docname, source):
    """Put the files of the root in the place of their pages, and point links between both at pages of the site."""
    if docname in OF_THE_ROOT:
        text = (ROOT / OF_THE_ROOT[docname]).read_text()
        text = re.sub(r"\]\((?!docs/|#|\w+:)", "](../", text).replace("](docs/", "](")
        source[0] = text + source[0]
    for page, name in OF_THE_ROOT.items():
        source[0] = source[0].replace(f"](../{name}", f"]({page}.md")
    source[0] = re.sub(r"\[([^\[\]]*)\]\(\.\./([\w./-]+)\)", of_a_folder, source[0])


def of_a_folder(link):
    """The text of a link to a folder of the checkout, which a site cannot show; any other link as it is."""
    return link[1] if (ROOT / link[2]).is_dir() else link[0]


def plain_docstring(app, what, name, obj, options, lines):
    """Docstrings are plain text with names in backticks: outside of these, nothing is markup of reStructuredText."""
    lines[:] = [
        "".join(
            re.sub(r"([*|_])", r"\\\1", text) if n % 2 == 0 else text
            for n, text in enumerate(re.split("(`[^`]*`)", line))
        )
        for line in lines
    ]


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", text_of_the_root)
    app.connect("autodoc-process-docstring", plain_docstring)
