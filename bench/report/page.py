"""The page: one HTML file with everything in it, pictures included, so that it can be sent to somebody."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Final

from bench.histogram import Histogram
from bench.machine import Machine
from bench.noise import spread
from bench.outcome import BenchError
from bench.report.charts import charts
from bench.results import Results, ScenarioLine

__all__ = ["write"]

STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.6rem } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-top: 1px solid #ddd; padding-top: 1rem }
table { border-collapse: collapse; font-size: .85rem; margin: .6rem 0; display: block; overflow-x: auto }
td, th { padding: .15rem .6rem; text-align: right; border-bottom: 1px solid #eee; white-space: nowrap }
td:first-child, th:first-child { text-align: left } th { color: #666; font-weight: 600 }
.met { color: #17703a } .missed { color: #b3261e; font-weight: 600 } .quick { color: #777 }
.flame { width: min(1400px, 96vw); margin: 1rem 0 1rem 50%; transform: translateX(-50%); overflow-x: auto }
.small { color: #666; font-size: .85rem } img { max-width: 100%; height: auto } nav a { margin-right: .8rem }
pre { background: #f6f6f6; padding: .6rem; overflow-x: auto; font-size: .8rem } summary { cursor: pointer; color: #666 }
"""
#: Shares of a latency table.
SHARES: Final = (0.5, 0.9, 0.99, 0.999, 0.9999)


def write(files: Sequence[Results], folder: Path) -> tuple[Path, int]:
    """Write `report.html` and the PNG files of its charts into a folder; its path, and how many charts there are."""
    if not any(file.scenarios for file in files):
        raise BenchError("there is nothing to report on yet: python -m bench run NAME")
    lines = {name: (file, line) for file in reversed(files) for name, line in file.scenarios.items()}
    pictures = folder / "report"
    pictures.mkdir(parents=True, exist_ok=True)
    for old in pictures.glob("*.png"):
        old.unlink()
    sections, count = [], 0
    for name, (file, line) in lines.items():
        images = charts(line.outcome)
        for what, image in images.items():
            (pictures / f"{name}-{what}.png").write_bytes(image)
        count += len(images)
        sections.append(_section(file.machine, line, images))
    links = "".join(f'<a href="#{escape(name)}">{escape(name)}</a>' for name in lines)
    page = folder / "report.html"
    page.write_text(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>fastpresence: what it costs</title><style>{STYLE}</style>"
        f"<h1>fastpresence: what it costs</h1>{_summary(lines)}<nav>{links}</nav>{''.join(sections)}"
        f"<h2>Machine</h2>{''.join(_machine(machine) for machine in _machines(files))}</html>\n"
    )
    return page, count


def _summary(lines: dict[str, tuple[Results, ScenarioLine]]) -> str:
    """Every bar of every scenario, first of all."""
    rows = []
    for name, (_, line) in lines.items():
        for bar in line.outcome.bars:
            word = bar.verdict(quick=line.quick)
            mark = {"met": "met", "not judged in a quick run": "quick"}.get(word, "missed")
            rows.append([f'<a href="#{escape(name)}">{escape(name)}</a>', escape(bar.text),
                         f'<span class={mark}>{word}</span>'])  # fmt: skip
        rows += [
            [escape(name), escape(fault), "<span class=missed>WRONG RESULT</span>"]
            for fault in (*line.outcome.faults, *line.outcome.behind)
        ]
    return _table(["scenario", "bar", ""], rows) if rows else ""


def _section(machine: Machine, line: ScenarioLine, images: dict[str, bytes]) -> str:
    outcome = line.outcome
    parts = [
        f"<h2 id={escape(outcome.name)}>{escape(outcome.name)}</h2><p>{escape(outcome.question)}</p>",
        f"<p class=small>Leaves out: {escape(outcome.leaves_out)}.<br>{escape(outcome.settings)}<br>"
        f"{escape(machine.at)}, commit {escape(machine.commit)}; meanwhile other work used "
        f"{outcome.foreign_cores:.2f} cores, the host {outcome.steal_percent:.1f} %"
        f"{'; <b>a quick run: no figure means anything</b>' if line.quick else ''}</p>",
    ]
    if outcome.uncounted:
        parts.append(f"<p class=missed>{outcome.uncounted} runs do not count: the load was at its own limit.</p>")
    if outcome.rows:
        parts.append(_table(outcome.columns, [[escape(cell) for cell in row] for row in outcome.rows]))
    if outcome.figures:
        figures = [
            [escape(figure.name), f"{median(figure.values):,.4g}", escape(figure.unit),
             f"± {100 * spread(figure.values):.1f} %", str(len(figure.values)), f"{figure.better} is better"]
            for figure in outcome.figures
        ]  # fmt: skip
        parts.append(_table(["figure", "median", "unit", "spread", "runs", ""], figures))
    if outcome.histograms:
        parts.append(_latencies(outcome.histograms))
    if outcome.flame:
        parts.append(f"<figure class=flame>{outcome.flame}</figure>")
    parts += [_picture(f"{outcome.name}, {what}", image) for what, image in images.items()]
    parts.append("<ul class=small>" + "".join(f"<li>{escape(note)}</li>" for note in outcome.notes) + "</ul>")
    for name, histogram in outcome.histograms.items():
        parts.append(
            f"<details><summary>percentile file of {escape(name)}</summary><pre>{histogram.text()}</pre></details>"
        )
    return "".join(parts)


def _latencies(histograms: dict[str, Histogram]) -> str:
    rows = []
    for name, histogram in histograms.items():
        values = [*histogram.all_at(SHARES), histogram.max_ns]
        rows.append([escape(name), f"{histogram.count:,}", *(f"{value / 1e6:.2f}" for value in values)])
    return _table(["latency, ms, all runs", "samples", *(f"p{100 * share:g}" for share in SHARES), "max"], rows)


def _picture(name: str, image: bytes) -> str:
    data = base64.b64encode(image).decode()
    return f'<p><img alt="{escape(name)}" src="data:image/png;base64,{data}"></p>'


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _machines(files: Sequence[Results]) -> list[Machine]:
    return [file.machine for file in files if file.scenarios]


def _machine(machine: Machine) -> str:
    facts = {"load before": f"{machine.load:.2f}", **machine.versions, **machine.settings}
    rows = [[escape(name), escape(value)] for name, value in facts.items()]
    return f"<details><summary>{escape(machine.text())}</summary>{_table(['', ''], rows)}</details>"
