"""What got better and what got worse between two results files, beyond the noise that both show."""

from statistics import median

from bench.noise import Verdict, judge, spread
from bench.outcome import Figure, table
from bench.results import Results

__all__ = ["compare"]


def compare(old: Results, new: Results) -> tuple[list[str], bool]:
    """Lines for a person, and whether anything got worse."""
    lines = [f"old: {old.machine.text()}", f"new: {new.machine.text()}"]
    differences = new.machine.differs_from(old.machine)
    if differences:
        lines.append("NOT THE SAME MACHINE, so that figures can't be compared: " + "; ".join(differences))
    rows, worse = [], False
    for name in old.scenarios.keys() & new.scenarios.keys():
        before, after = old.scenarios[name], new.scenarios[name]
        if before.quick or after.quick:
            lines.append(f"{name}: a quick run has no figures to compare")
            continue
        figures = {figure.name: figure for figure in before.outcome.figures}
        for figure in after.outcome.figures:
            if figure.name in figures:
                verdict = judge(figures[figure.name].values, figure.values, higher_is_better=figure.better == "higher")
                worse |= verdict is Verdict.WORSE
                rows.append(_row(name, figures[figure.name], figure, verdict))
    for name in sorted(old.scenarios.keys() ^ new.scenarios.keys()):
        lines.append(f"{name}: only in {'old' if name in old.scenarios else 'new'}")
    if rows:
        lines += table(["figure", "unit", "old", "new", "change", "verdict"], sorted(rows))
    else:
        lines.append("nothing in common")
    return lines, worse


def _row(scenario: str, old: Figure, new: Figure, verdict: Verdict) -> list[str]:
    before, after = median(old.values), median(new.values)
    change = f"{100 * (after / before - 1):+.1f} %" if before else "-"
    sides = [f"{value:,.4g} ±{100 * spread(f.values):.1f}%" for value, f in ((before, old), (after, new))]
    return [f"{scenario}: {new.name}", new.unit, *sides, change, verdict.value]
