"""How every figure looks, and how one drawing becomes an SVG for the page, a PDF and a PNG.

Colours are Okabe and Ito's, which colour-blind readers tell apart, the light ones darkened to a contrast of
at least 3:1 on white; line styles and markers tell the same apart in grey. All text has one size: figures are
WIDE, or two of them (HALF) share a row, and page and print scale both alike.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from kdfast.errors import ConfigError
from kdfast.report.rendering import environment
from kdfast.report.schema.runs import Setting
from kdfast.report.schema.values import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "CONTEXT",
    "FONT_SIZE",
    "HALF",
    "ROLES",
    "STRATEGIES",
    "STUDENTS",
    "WIDE",
    "Drawing",
    "Figures",
    "axes_grid",
    "bar_lengths",
    "by_strategy",
    "drawing",
    "drawn_on",
    "error_bars",
    "experiment_label",
    "exports",
    "figure_style",
    "filled",
    "fits",
    "legend_above",
    "said",
]

# Widths in inches, and the size of all text in points: on A4 between its margins at least 9 points.
WIDE = 8.8
HALF = 4.3
FONT_SIZE = 11

# Networks: teacher, baseline, then the best students.
ROLES: dict[str, dict[str, Any]] = {
    "teacher": {"color": "black", "linestyle": "-"},
    "baseline": {"color": "#D55E00", "linestyle": "--"},
    "student": {"color": "#0072B2", "linestyle": "-"},
    "student 2": {"color": "#009E73", "linestyle": "-."},
    "student 3": {"color": "#B8578D", "linestyle": ":"},
    "student 4": {"color": "#B97700", "linestyle": (0, (6, 2))},
    "student 5": {"color": "#2A8FD0", "linestyle": (0, (4, 1, 1, 1, 1, 1))},
    "student 6": {"color": "#444444", "linestyle": (0, (2, 1))},
}
STUDENTS = tuple(role for role in ROLES if role.startswith("student"))

# Grey of what is drawn for context: all other students.
CONTEXT = "#949494"

# Label, colour and marker of each strategy.
STRATEGIES: dict[str, tuple[str, str, str]] = {
    "baseline": ("T, α constant", "#444444", "o"),
    "tempanneal": ("T annealed", "#B97700", "s"),
    "alphasched": ("α scheduled", "#009E73", "^"),
    "combined": ("both", "#2A8FD0", "D"),
}

_DPI = 130
_FONT = "TeX Gyre Heros"
_TEXT = (
    "font.size",
    "axes.labelsize",
    "axes.titlesize",
    "xtick.labelsize",
    "ytick.labelsize",
    "legend.fontsize",
    "legend.title_fontsize",
)


@dataclass(frozen=True)
class Drawing:
    """One figure of the report.

    name: of its files. title, caption: what is shown and how. description: what a reader sees in it, for
    those who do not see it.
    """

    name: str
    title: str
    caption: str
    description: str
    figure: Figure

    @property
    def wide(self) -> bool:
        """Whether it takes the page's whole width."""
        return self.figure.get_figwidth() > HALF


def drawing(name: str, figure: Figure, description: str, **values: Any) -> Drawing:
    """A figure with its title and caption. values: what these state (see templates/figures.j2)."""
    words = getattr(environment().get_template("figures.j2").module, name)(values)
    title, _, caption = str(words).strip().partition("\n")
    return Drawing(name, title, " ".join(caption.split()), description, figure)


# Names of figures, and what draws them.
Figures: TypeAlias = Iterator[tuple[str, Callable[[], Drawing]]]

S = TypeVar("S", bound=Setting)


@contextmanager
def figure_style() -> Iterator[None]:
    """The field's style, for drawing and for saving; a user's own settings stay as they are."""
    import mplhep
    from matplotlib import style

    own = {
        "figure.constrained_layout.use": True,
        **dict.fromkeys(_TEXT, FONT_SIZE),
        "lines.linewidth": 1.6,
        "axes.labelpad": 3,
        "axes.autolimit_mode": "data",
        "axes.xmargin": 0.03,
        "axes.ymargin": 0.06,
        "axes.formatter.limits": (-4, 5),
        "axes.formatter.use_mathtext": False,  # text instead of formulas where it will do: several times as fast
        "axes.unicode_minus": True,
        "ytick.major.size": 8,
        "ytick.minor.size": 4,
        "xtick.major.size": 6,
        "svg.fonttype": "path",  # looks the same where the fonts are missing
        "font.sans-serif": [_FONT, "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
        "mathtext.fontset": "custom",
        "mathtext.rm": _FONT,
        "mathtext.it": f"{_FONT}:italic",
    }
    with style.context([mplhep.style.ATLAS, own]):
        yield


# Axes that a figure is to be drawn on. Empty: on new ones of pyplot's, which notebooks show. None: on new
# ones of a figure that pyplot does not know. And, as a list, where `axes_grid` notes what it has given.
_target: ContextVar[tuple[tuple[Axes, ...], list[NDArray[Any]]] | None] = ContextVar("target", default=None)


@contextmanager
def drawn_on(axes: Sequence[Axes] = ()) -> Iterator[list[NDArray[Any]]]:
    """Inside, figures are drawn on these axes, or on new ones of pyplot's. Gives the list of what `axes_grid` gave."""
    given: list[NDArray[Any]] = []
    token = _target.set((tuple(axes), given))
    try:
        yield given
    finally:
        _target.reset(token)


def fits(panels: int) -> bool:
    """Whether a figure may have this number of panels: with a user's axes, at most one for each of them."""
    target = _target.get()
    return target is None or not target[0] or len(target[0]) >= panels


def axes_grid(
    rows: int = 1, columns: int = 1, *, size: tuple[float, float], **options: Any
) -> tuple[Figure, NDArray[Any]]:
    """A figure of this size (inches) and its axes [rows, columns]; inside `drawn_on` see there."""
    target = _target.get()
    if target is not None and target[0]:
        given = target[0]
        if len(given) != rows * columns:
            raise ConfigError(f"this figure needs {rows * columns} axes, not {len(given)}", where="ax")
        figure: Any = given[0].figure
        axes = np.array(given, object).reshape(rows, columns)
    else:
        figure = _new_figure(size, by_pyplot=target is not None)
        axes = figure.subplots(rows, columns, squeeze=False, **options)
    if target is not None:
        target[1].append(axes)
    return figure, axes


def _new_figure(size: tuple[float, float], by_pyplot: bool) -> Figure:
    if by_pyplot:
        from matplotlib import pyplot

        return pyplot.figure(figsize=size)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    return figure


def error_bars(axes: Axes, x: Sequence[float] | NDArray[Any], estimates: Sequence[Estimate], **options: Any) -> None:
    """Points with their 95 % intervals; one without an interval has none, a lower limit has an arrow
    upwards."""
    values = np.array([estimate.value for estimate in estimates])
    limits = np.array([estimate.lower_limit for estimate in estimates], bool)
    lengths = np.where(limits, 0.5 * values, bar_lengths(estimates))
    axes.errorbar(x, values, yerr=lengths, lolims=limits, linestyle="none", **options)


def bar_lengths(estimates: Sequence[Estimate]) -> NDArray[np.float64]:
    """[2, n]: from the values down and up to the ends of their intervals; 0 without one."""
    values = np.array([estimate.value for estimate in estimates])
    ends = np.array([[e.value if e.low is None else e.low, e.value if e.high is None else e.high] for e in estimates])
    return np.abs(ends.T - values)


def by_strategy(rows: Sequence[S]) -> Iterator[tuple[list[S], str, dict[str, Any]]]:
    """The rows of each strategy that has any, with its label and the look of its points."""
    for strategy, (label, color, marker) in STRATEGIES.items():
        own = [row for row in rows if row.strategy == strategy]
        if own:
            yield own, label, {"color": color, "marker": marker}


def legend_above(figure: Figure, axes: Axes, width: int = 46, columns: int = 1) -> None:
    """Names of configurations are long: inside the axes they would lie on the curves. (Above the axes of a
    user's own figure there may be others.)"""
    handles, labels = axes.get_legend_handles_labels()
    names = [filled(label, width) for label in labels]
    target = _target.get()
    if target is not None and target[0]:
        axes.legend(handles, names, ncols=columns)
        return
    figure.legend(handles, names, loc="outside upper left", borderaxespad=0.2, ncols=columns)


def experiment_label(axes: Axes, label: str) -> None:
    """A line above the axes, as experiments label their figures: the first word bold and italic."""
    name, _, rest = label.partition(" ")
    above_title = (axes.get_title(loc="left").count("\n") + 1) * 1.3 * FONT_SIZE if axes.get_title(loc="left") else 0
    place: dict[str, Any] = {"textcoords": "offset points", "va": "bottom", "ha": "left", "annotation_clip": False}
    first = axes.annotate(
        name, (0, 1), (0, 3 + above_title), xycoords="axes fraction", weight="bold", style="italic", **place
    )
    axes.annotate(rest, (1, 0), (4, 0), xycoords=first, **place)


def filled(label: str, width: int) -> str:
    """A label in lines of at most `width` characters, broken between words: names, and numbers with what
    they belong to, stay whole."""
    together = re.sub(r"(?<=seed) |(?<=AUC) | (?=±)|(?<=±) ", "\N{NO-BREAK SPACE}", label)
    lines = textwrap.fill(together, width, break_long_words=False, break_on_hyphens=False)
    return lines.replace("\N{NO-BREAK SPACE}", " ")


def said(estimate: Estimate | None, digits: int) -> str:
    """A number with its interval, for descriptions and legends."""
    if estimate is None:
        return "unknown"
    text = f"{'above ' if estimate.lower_limit else ''}{estimate.value:.{digits}f}"
    if estimate.low is not None and estimate.high is not None:
        text += f" (95 % interval {estimate.low:.{digits}f} to {estimate.high:.{digits}f})"
    return text


# ---- files


def exports(drawing: Drawing) -> dict[str, bytes]:
    """The drawing as "svg" (for the page), "pdf" and "png". The same results give the same bytes."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    # The canvases' own functions draw once; savefig draws twice. The first drawing finds the layout for all
    # three.
    figure = drawing.figure
    png = io.BytesIO()
    svg = io.BytesIO()
    pdf = io.BytesIO()
    figure.set_dpi(_DPI)
    FigureCanvasAgg(figure).print_png(png)
    figure.set_layout_engine("none")
    with rc_context({"svg.hashsalt": drawing.name}):
        FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None})
    FigureCanvasPdf(figure).print_pdf(pdf, metadata={"CreationDate": None})
    return {"svg": _inline(svg.getvalue().decode(), drawing).encode(), "pdf": pdf.getvalue(), "png": png.getvalue()}


def _inline(svg: str, drawing: Drawing) -> str:
    """An SVG document as an element of a page: no declaration, metadata or style of its own, ids that no
    other figure has, and its text alternative. It is made shorter, by a quarter: ids that nothing refers to
    go, others get short ones, and paths keep two decimal places (of a point)."""
    from html import escape

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    used = dict.fromkeys(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    names = {old: f"{drawing.name}-{number}" for number, old in enumerate(used)}
    svg = re.sub(r' id="([^"]+)"', lambda found: f' id="{names[found[1]]}"' if found[1] in names else "", svg)
    svg = re.sub(r'(href="|url\()#([^")]+)', lambda found: f"{found[1]}#{names[found[2]]}", svg)
    svg = svg.replace("xlink:href=", "href=")
    svg = re.sub(r' d="[^"]+"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), svg)
    svg = re.sub(r"\n +", "\n", svg)
    head = re.match(r"<svg[^>]*>", svg)
    assert head is not None
    body = svg[head.end() :]
    box = re.search(r'viewBox="[^"]*"', head[0])
    assert box is not None
    title, description = (f"{drawing.name}-{part}" for part in ("title", "description"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {box[0]} role="img" aria-labelledby="{title} {description}">'
        f'<title id="{title}">{escape(drawing.title)}</title>'
        f'<desc id="{description}">{escape(drawing.description)}</desc>{body}'
    )
