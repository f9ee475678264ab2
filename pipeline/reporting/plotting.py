"""The one place where figures are created and turned into PNG bytes.

Figures are created without pyplot, so no global state keeps them alive. Agg draws them, which needs no display.
"""

import io
import logging
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# A list of fonts that another environment left in the user's cache may lack matplotlib's own: it finds DejaVu Sans, and
# would warn about every other one.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """An empty figure of this size in inches. options: further arguments of matplotlib's Figure."""
    figure = Figure(figsize=(width, height), **options)
    FigureCanvasAgg(figure)
    return figure


def to_png(figure: Figure, dpi: int) -> bytes:
    """The figure as a PNG. The file does not name matplotlib's version."""
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=dpi, metadata={"Software": None})
    return sink.getvalue()
