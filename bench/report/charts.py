"""The pictures: distributions and percentiles of latency, throughput and memory over time, curves with their fits."""

import io
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, Final

from bench.histogram import Histogram, edge_ns
from bench.outcome import BenchError, Curve, Outcome, Ranking, Series

__all__ = ["charts"]

#: Inches, and dots to the inch: readable in a page, not larger than a page.
SIZE: Final = (7.6, 3.6)
DPI: Final = 110
#: Line widths of a screen; more than so many points of one series are joined to their mean.
POINTS_MAX: Final = 800
#: Of the histogram, in one step of a distribution: 64 make a doubling.
BUCKETS: Final = 8
#: More names than that go beside the chart.
NAMES_MAX: Final = 6
#: Shares that the axis of a percentile plot names.
TICKS: Final = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)


def charts(outcome: Outcome) -> dict[str, bytes]:
    """PNG images by name. Raises BenchError when matplotlib is not there."""
    made: dict[str, bytes] = {}
    if outcome.histograms:
        made["latency-distribution"] = _drawn(lambda axes: _distribution(axes, outcome.histograms))
        made["latency-percentiles"] = _drawn(lambda axes: _percentiles(axes, outcome.histograms))
    for what, unit in (("throughput", "operations a second"), ("memory", "MB resident")):
        series = [each for each in outcome.series if each.unit == unit]
        if series:
            made[what] = _drawn(lambda axes, s=series, u=unit: _over_time(axes, s, u))  # type: ignore[misc]
    for number, curve in enumerate(outcome.curves):
        made[f"curve-{number + 1}"] = _drawn(lambda axes, c=curve: _curve(axes, c))  # type: ignore[misc]
    for number, ranking in enumerate(outcome.rankings):
        made[f"ranking-{number + 1}"] = _drawn(lambda axes, r=ranking: _ranking(axes, r))  # type: ignore[misc]
    return made


def _drawn(draw: Callable[[Any], None]) -> bytes:
    os.environ.setdefault("MPLBACKEND", "Agg")  # no screen is needed
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise BenchError("the report needs matplotlib: pip install -e '.[bench]'") from None
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    names = len(axes.get_legend_handles_labels()[0])
    if names > NAMES_MAX:
        axes.legend(fontsize="x-small", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    elif names:
        axes.legend(fontsize="small", frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


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
    axes.set(xlabel="milliseconds", ylabel="% of all in a doubling")


def _percentiles(axes: Any, histograms: dict[str, Histogram]) -> None:
    """As HdrHistogram draws it: the further to the right, the rarer."""
    for name, histogram in histograms.items():
        points = [(1 / (1 - share), value / 1e6) for share, value in histogram.percentiles() if share < 1]
        axes.plot([x for x, _ in points], [y for _, y in points], label=name)
    axes.set_xscale("log")
    most = max(histogram.count for histogram in histograms.values())
    ticks = [share for share in TICKS if 1 / (1 - share) <= most]
    axes.set_xticks([1 / (1 - share) for share in ticks], [f"{100 * share:g} %" for share in ticks])
    _from_zero(axes)
    axes.set(xlabel="percentile", ylabel="milliseconds")


def _over_time(axes: Any, series: Sequence[Series], unit: str) -> None:
    for each in series:
        joined = max(1, -(-len(each.values) // POINTS_MAX))
        chunks = [each.values[at : at + joined] for at in range(0, len(each.values), joined)]
        times = [at * joined * each.step_s for at in range(len(chunks))]
        axes.plot(times, [sum(chunk) / len(chunk) for chunk in chunks], label=each.name, linewidth=1)
    _from_zero(axes)
    axes.set(xlabel="seconds of measurement, runs put end to end", ylabel=unit)


def _from_zero(axes: Any) -> None:
    axes.set_ylim(0, 1.08 * axes.dataLim.y1 or 1.0)


def _curve(axes: Any, curve: Curve) -> None:
    axes.plot([x for x, _ in curve.points], [y for _, y in curve.points], "o", label="measured")
    if curve.fit:
        axes.plot([x for x, _ in curve.fit], [y for _, y in curve.fit], "--", label=curve.fit_text or "fit")
    if curve.limit is not None:
        axes.axhline(curve.limit, color="tab:red", linewidth=1, label=f"bar: {curve.limit:g}")
    xs = [x for x, _ in curve.points]
    if min(xs) > 0 and max(xs) / min(xs) >= 20:
        axes.set_xscale("log")
    _from_zero(axes)
    axes.set(title=curve.name, xlabel=curve.x_label, ylabel=curve.y_label)


def _ranking(axes: Any, ranking: Ranking) -> None:
    names = sorted(ranking.values, key=lambda name: ranking.values[name], reverse=True)
    colors = ["tab:orange" if name == ranking.ours else "tab:blue" for name in names]
    bars = axes.barh(names, [ranking.values[name] for name in names], color=colors)
    axes.bar_label(bars, fmt="{:,.4g}", fontsize="small", padding=3)
    axes.set_xlim(0, 1.15 * max(ranking.values.values()))
    axes.set(title=ranking.name, xlabel=ranking.unit)
