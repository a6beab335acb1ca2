"""What all figures share: colours that every colour vision tells apart, one a method everywhere, and saving.

Every figure is written twice, as PNG for pages and as SVG for print, both byte-identical for equal input.
"""

import io
from pathlib import Path
from zlib import crc32

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.files import write_bytes

# Okabe and Ito's colours, distinguishable with every common colour vision.
COLOURS = ["#000000", "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442"]
_METHODS = ("at_pgd", "adt_exp", "adt_exp_am", "adt_imp_am", "trades", "feature_scatter", "at_fgsm", "standard")
_MARKERS = "os^Dv<>p"
# Tol's muted colours, for methods of a user's own.
_OTHERS = ["#882255", "#44AA99", "#999933", "#332288", "#AA4499"]


def method_colour(method: str) -> str:
    """A method's colour, the same in every figure: it hangs on the name alone."""
    return COLOURS[_METHODS.index(method)] if method in _METHODS else _OTHERS[crc32(method.encode()) % len(_OTHERS)]


def method_marker(method: str) -> str:
    """A method's marker, for those who print in grey."""
    return _MARKERS[_METHODS.index(method)] if method in _METHODS else "X"


def one_panel(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of `width` x `height` inches with one panel."""
    return pyplot.subplots(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: Path) -> None:
    """Write `path`, which ends in .png, and the same figure as .svg beside it; then forget the figure."""
    for suffix, options in ((".png", {"dpi": 110, "metadata": {"Software": None}}), (".svg", {"metadata": _PLAIN})):
        buffer = io.BytesIO()
        # Ids in an SVG are random numbers unless they are salted with a fixed word.
        with matplotlib.rc_context({"svg.hashsalt": "adt"}):
            figure.savefig(buffer, format=suffix[1:], **options)
        write_bytes(path.with_suffix(suffix), buffer.getvalue())
    pyplot.close(figure)


_PLAIN = {"Date": None, "Creator": None}
