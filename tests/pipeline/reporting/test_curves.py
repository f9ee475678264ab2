"""Charts of logs: which there are, what they draw, and logs of the first release."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from rdpm.pipeline.reporting import curves
from rdpm.pipeline.reporting.curves import bar_chart, rank_chart, read_lines, training_charts


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that become pictures, in their order."""
    figures = []
    to_png = curves.to_png
    monkeypatch.setattr(curves, "to_png", lambda figure, dpi: figures.append(figure) or to_png(figure, dpi))
    return figures


def _curves(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    """Points of each curve, by label."""
    lines = figure.axes[0].get_lines()
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in lines}


def _write(folder, lines) -> str:
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def test_old_and_new_names_of_the_learning_rate_are_one_curve(tmp_path, drawn):
    """A training that the first release began and this one resumed has both names in one log."""
    old = [{"step": step, "learning_rate": step / 10} for step in (1, 2)]
    new = [{"step": step, "lr": step / 10} for step in (3, 4)]
    charts = training_charts(read_lines(_write(tmp_path, old + new)))
    assert len(charts) == len(drawn) == 1
    assert 'alt="Chart: Learning rate"' in charts[0]
    assert _curves(drawn[0]) == {"lr": ([1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4])}


@pytest.mark.parametrize("key", ["lr", "learning_rate"])
def test_either_name_of_the_learning_rate_is_drawn(tmp_path, drawn, key):
    training_charts(read_lines(_write(tmp_path, [{"step": 1, key: 0.5}, {"step": 2, key: 0.25}])))
    assert _curves(drawn[0]) == {"lr": ([1, 2], [0.5, 0.25])}


def test_there_is_a_chart_for_each_group_of_keys_that_the_log_has(drawn):
    lines = [
        {"step": 1, "loss": 2.0, "reconstruction": 1.0, "loss_by_step": [None, 0.5]},
        {"step": 2, "loss": 1.0, "reconstruction": 0.05, "commitment": 3.0, "loss_by_step": [0.25, 0.5]},
    ]
    charts = training_charts(lines)
    assert [chart.split('alt="')[1].split('"')[0] for chart in charts] == [
        *("Chart: Loss", "Chart: Loss terms", "Chart: Loss by step t"),
    ]
    assert all(chart.startswith('<img src="data:image/png;base64,iVBOR') for chart in charts)
    terms = _curves(drawn[1])
    assert terms["reconstruction"] == ([1, 2], [1.0, 0.05])
    assert np.isnan(terms["commitment"][1][0])
    assert [figure.axes[0].get_yscale() for figure in drawn] == ["linear", "log", "linear"]
    assert _curves(drawn[2]) == {"1": ([2], [0.25]), "2": ([1, 2], [0.5, 0.5])}  # the missing value is left out


def test_charts_of_numbers_per_step(drawn):
    bar_chart("Bars", [0.5, 0.25])
    rank_chart("Ranks", np.array([[1, 3, 2], [0, 0, 0]]))
    bars = drawn[0].axes[0].patches
    assert [bar.get_height() for bar in bars] == [0.5, 0.25]
    assert [bar.get_x() + bar.get_width() / 2 for bar in bars] == pytest.approx([1, 2])
    assert _curves(drawn[1]) == {"1": ([1, 2, 3], [1.5, 1.0, 0.5]), "2": ([1, 2, 3], [0, 0, 0])}


def test_equal_charts_are_equal_bytes():
    assert bar_chart("Bars", [0.5, 0.25]) == bar_chart("Bars", [0.5, 0.25])


def test_a_folder_without_a_log_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no log.jsonl with lines; give the folder of a finished training"):
        read_lines(str(tmp_path))
