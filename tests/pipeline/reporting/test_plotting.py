"""Figures, whatever fonts the user's cache lists."""

import subprocess

PLOT = """
from matplotlib import font_manager
fonts = font_manager.fontManager
fonts.ttflist = [font for font in fonts.ttflist if font.name == "DejaVu Sans"]
from rdpm.pipeline.reporting.plotting import new_figure, to_png
figure = new_figure(3, 2)
figure.subplots().loglog([1, 10], [1, 10])
print(len(to_png(figure, 50)))
"""


def test_a_list_of_fonts_without_matplotlibs_own_gives_no_warnings(python, repository):
    ended = subprocess.run([*python, "-c", PLOT], cwd=repository, capture_output=True, text=True, check=True)
    assert int(ended.stdout) > 1000
    assert ended.stderr == ""
