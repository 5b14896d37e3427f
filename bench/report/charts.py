"""The pictures: distributions and percentiles of latency, throughput and memory over time, curves with their fits."""

import io
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, Final

from bench.histogram import Histogram, edge_ns
from bench.outcome import BenchError, Curve, Outcome, Ranking, Series

__all__ = ["charts"]

#: Inches, and dots to the inch: readable in a page, not larger than a page; twice as many dots as a page has.
SIZE: Final = (7.6, 3.6)
DPI: Final = 160
LOOK: Final[Any] = {  # rcParams
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "axes.titlelocation": "left",
    "font.size": 9,
    "grid.alpha": 0.3,
    "legend.fontsize": "small",
    "legend.frameon": False,
}
#: The unit of memory's series, which are not of a question.
MEMORY: Final = "MB resident"
#: Values that far apart want a logarithmic axis.
WIDE: Final = 20
#: Line widths of a screen; more than so many points of one series are joined to their mean.
POINTS_MAX: Final = 800
#: Of the histogram, in one step of a distribution: 64 make a doubling.
BUCKETS: Final = 8
#: More names than that go beside the chart.
NAMES_MAX: Final = 6
#: Shares that the axis of a percentile plot names.
TICKS: Final = (0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)


def charts(outcome: Outcome) -> dict[str, bytes]:
    """PNG images by name. Raises BenchError when matplotlib is not there."""
    made: dict[str, bytes] = {}

    def add(name: str, draw: Callable[..., None], *what: object) -> None:
        made[name] = _drawn(lambda axes: draw(axes, *what))

    if outcome.histograms:
        add("latency-percentiles", _percentiles, outcome.histograms, outcome.latency_bar_ms)
        add("latency-distribution", _distribution, outcome.histograms)
    asked = list(dict.fromkeys((series.unit, series.question) for series in outcome.series))
    for number, (unit, question) in enumerate(sorted(asked, key=lambda pair: pair[0] == MEMORY)):
        series = [each for each in outcome.series if (each.unit, each.question) == (unit, question)]
        add("memory" if unit == MEMORY else f"throughput-{number + 1}", _over_time, series, unit, question)
    for number, curve in enumerate(outcome.curves):
        add(f"curve-{number + 1}", _curve, curve)
    for number, ranking in enumerate(outcome.rankings):
        add(f"ranking-{number + 1}", _ranking, ranking)
    return made


def _drawn(draw: Callable[[Any], None]) -> bytes:
    os.environ.setdefault("MPLBACKEND", "Agg")  # no screen is needed
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise BenchError("the report needs matplotlib: pip install -e '.[bench]'") from None
    with rc_context(LOOK):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        draw(axes)
        names = len(axes.get_legend_handles_labels()[0])
        if names > NAMES_MAX:
            axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))
        elif names > 1:
            axes.legend()
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=DPI)
    return image.getvalue()


def _plain(axes: Any, *which: str) -> None:
    """Numbers on these axes as people write them, logarithmic ones too."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for axis in (getattr(axes, f"{name}axis") for name in which):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        if axis.get_scale() == "log":
            axis.set_minor_formatter(NullFormatter())


def _distribution(axes: Any, histograms: dict[str, Histogram]) -> None:
    """How dense values are by latency: steps of eight buckets, which are narrower at the far end of each doubling."""
    for name, histogram in histograms.items():
        shares: dict[int, int] = {}
        for index, count in histogram.buckets:
            shares[index // BUCKETS] = shares.get(index // BUCKETS, 0) + count
        total = histogram.count
        steps = range(min(shares), max(shares) + 1)
        edges = [
            (edge_ns(step * BUCKETS - 1) + 1 if step else 1, edge_ns((step + 1) * BUCKETS - 1) + 1) for step in steps
        ]
        values = [
            100 * shares.get(step, 0) / total / math.log2(high / low)
            for step, (low, high) in zip(steps, edges, strict=True)
        ]
        times = [math.sqrt(low * high) / 1e6 for low, high in edges]
        axes.step(times, values, where="mid", label=f"{name} ({total:,})")
    axes.set_xscale("log")
    _from_zero(axes)
    _plain(axes, "x", "y")
    axes.set(title="latency, how often", xlabel="milliseconds", ylabel="% of all in a doubling")


def _percentiles(axes: Any, histograms: dict[str, Histogram], bar_ms: float | None) -> None:
    """As HdrHistogram draws it: the further to the right, the rarer."""
    for name, histogram in histograms.items():
        points = [(1 / (1 - share), value / 1e6) for share, value in histogram.percentiles() if share < 1]
        axes.plot([x for x, _ in points], [y for _, y in points], label=f"{name} ({histogram.count:,})")
    if bar_ms is not None:  # a corner that the curves have to pass below
        axes.plot([1, 100, 100], [bar_ms, bar_ms, 0], color="tab:red", linewidth=1, linestyle=":")
        _say(axes, bar_ms, f"bar: {bar_ms:g} ms at 99 %")
    axes.set_xscale("log")
    most = max(histogram.count for histogram in histograms.values())
    ticks = [share for share in TICKS if 1 / (1 - share) <= most]
    axes.set_xticks([1 / (1 - share) for share in ticks], [f"{100 * share:g} %" for share in ticks])
    axes.set_xticks([], minor=True)
    middles = [max(1, histogram.at(0.5)) / 1e6 for histogram in histograms.values()]
    if max(*middles, bar_ms or 0) / min(middles) >= WIDE:
        axes.set_yscale("log")
    else:
        _from_zero(axes)
    _plain(axes, "y")
    axes.set(title="latency by percentile", xlabel="share of all that is no slower", ylabel="milliseconds")


def _over_time(axes: Any, series: Sequence[Series], unit: str, question: str) -> None:
    for each in series:
        joined = max(1, -(-len(each.values) // POINTS_MAX))
        chunks = [each.values[at : at + joined] for at in range(0, len(each.values), joined)]
        times = [at * joined * each.step_s for at in range(len(chunks))]
        axes.plot(times, [sum(chunk) / len(chunk) for chunk in chunks], label=each.name, linewidth=1)
    _from_zero(axes)
    _plain(axes, "y")
    if unit == MEMORY:
        axes.set(title="memory", xlabel="seconds since each server's start", ylabel=unit)
    else:
        axes.set(title=question or "throughput", xlabel="seconds of measurement, runs end to end", ylabel=unit)


def _from_zero(axes: Any) -> None:
    axes.set_ylim(0, 1.08 * axes.dataLim.y1 or 1.0)


def _say(axes: Any, at: float, text: str) -> None:
    """What a bar of the project is, above its line."""
    axes.annotate(text, (0, at), xycoords=("axes fraction", "data"), xytext=(4, 3), textcoords="offset points",
                  color="tab:red", fontsize="small")  # fmt: skip


def _curve(axes: Any, curve: Curve) -> None:
    every = sorted([*curve.points, *curve.uncounted])
    xs, ys = [x for x, _ in every], [y for _, y in every]
    if curve.limit is not None:
        axes.plot(xs, ys, "-", color="tab:blue", linewidth=1, alpha=0.5)
        axes.axhline(curve.limit, color="tab:red", linewidth=1, linestyle=":")
        _say(axes, curve.limit, f"bar: {curve.limit:g}")
        within = [x for x, y in every if y < curve.limit]
        if within and len(within) < len(every):
            axes.axvspan(min(xs), max(within), color="tab:green", alpha=0.08, label=f"holds up to {max(within):,.0f}")
    axes.plot([x for x, _ in curve.points], [y for _, y in curve.points], "o", color="tab:blue", label="measured")
    if curve.uncounted:
        axes.plot([x for x, _ in curve.uncounted], [y for _, y in curve.uncounted], "o", color="tab:blue",
                  markerfacecolor="white", label="does not count: the load was at its limit")  # fmt: skip
    if curve.fit:
        axes.plot([x for x, _ in curve.fit], [y for _, y in curve.fit], "--", color="tab:orange",
                  label=curve.fit_text or "fit")  # fmt: skip
    wide_x, wide_y = (min(of) > 0 and max(of) / min(of) >= WIDE for of in (xs, ys))
    if wide_x:
        axes.set_xscale("log")
    if wide_x and wide_y:
        axes.set_yscale("log")
    else:
        _from_zero(axes)
    _plain(axes, "x", "y")
    axes.set(
        title=f"{curve.name}\n{curve.text}" if curve.text else curve.name, xlabel=curve.x_label, ylabel=curve.y_label
    )


def _ranking(axes: Any, ranking: Ranking) -> None:
    names = sorted(ranking.values, key=lambda name: ranking.values[name], reverse=True)
    colors = ["tab:orange" if name == ranking.ours else "tab:blue" for name in names]
    bars = axes.barh(names, [ranking.values[name] for name in names], color=colors)
    axes.bar_label(bars, fmt="{:,.4g}", fontsize="small", padding=3)
    axes.set_xlim(0, 1.15 * max(ranking.values.values()))
    axes.grid(visible=False, axis="y")
    _plain(axes, "x")
    axes.set(title=ranking.name, xlabel=f"{ranking.unit}; less is better")
