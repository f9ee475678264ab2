"""The one place where figures are created and turned into PNG bytes.

Figures are created without pyplot, so no global state keeps them alive. Agg draws them, which needs no display.
"""

import io
import logging
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator

# A list of fonts that another environment left in the user's cache may lack matplotlib's own: it finds DejaVu Sans, and
# would warn about every other one.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """An empty figure of this size in inches. options: further arguments of matplotlib's Figure."""
    figure = Figure(figsize=(width, height), **options)
    FigureCanvasAgg(figure)
    return figure


def use_log_scales(axis: Any, ticks: Sequence[float]) -> None:
    """Logarithmic scales with plain numbers; ticks: those of x."""
    axis.set_xscale("log")
    axis.set_yscale("log", nonpositive="mask")
    axis.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axis.minorticks_off()
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))


def to_png(figure: Figure, dpi: int) -> bytes:
    """The figure as a PNG. The file does not name matplotlib's version."""
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=dpi, metadata={"Software": None})
    return sink.getvalue()
