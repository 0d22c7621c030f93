"""Loss and pass rate of a run as one SVG file, from its logs: no account, no plotting library."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from training.callbacks import HELDOUT_LOSS, LOSS_LOG
from training.pass_rate import LOG_NAME

_WIDTH, _HEIGHT, _MARGIN, _GAP = 760, 240, 56, 48
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#e377c2", "#7f7f7f")

Points = Sequence[tuple[float, float]]


def plot_run(run_dir: Path) -> Path | None:
    """Write `training.svg` beside the logs; None when nothing has been logged."""
    logged = _rows(run_dir / LOSS_LOG)
    losses = {
        title: [(row["step"], row[key]) for row in logged if key in row]
        for title, key in (("training", "loss"), ("held out", HELDOUT_LOSS))
    }
    losses = {title: points for title, points in losses.items() if points}
    if "training" not in losses:
        return None
    rates: dict[str, list[tuple[float, float]]] = {}
    for row in _rows(run_dir / LOG_NAME):
        for name, count in row["counts"].items():
            rates.setdefault(name, []).append((row["step"], count["hits"] / count["total"]))
    panels = [_panel("loss", losses, 0, top=max(loss for points in losses.values() for _, loss in points))]
    if rates:
        panels.append(_panel("pass rate", rates, 1, top=1.0))
    height = len(panels) * (_HEIGHT + _GAP) + _GAP
    path = run_dir / "training.svg"
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(panels)
        + "\n</svg>\n"
    )
    partial = path.with_suffix(".svg.partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)
    return path


def _rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a log; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.endswith("}")]


def _panel(title: str, series: dict[str, Any], index: int, *, top: float) -> str:
    """One diagram with its axes; `series` is name → points (step, value), values from 0 to `top`."""
    last = max(step for points in series.values() for step, _ in points)
    top = top or 1.0
    left, right = _MARGIN, _WIDTH - _MARGIN * 2.5
    upper = _GAP + index * (_HEIGHT + _GAP)
    lower = upper + _HEIGHT
    lines = [
        f'<text x="{left}" y="{upper - 12}" font-weight="bold">{escape(title)}</text>',
        f'<path d="M{left} {upper}V{lower}H{right}" fill="none" stroke="#444"/>',
        f'<text x="{right}" y="{lower + 16}" text-anchor="end">step {last:g}</text>',
    ]
    for part in (0.0, 0.5, 1.0):
        y = lower - part * _HEIGHT
        lines.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{part * top:.3g}</text>')
    for place, (name, points) in enumerate(series.items()):
        colour = _COLOURS[place % len(_COLOURS)]
        at = [
            (left + (right - left) * step / last, lower - _HEIGHT * min(max(value, 0.0), top) / top)
            for step, value in points
        ]
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        lines.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        lines += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{colour}"/>' for x, y in at if len(at) < 60]
        lines.append(f'<text x="{right + 8}" y="{upper + 14 + 16 * place}" fill="{colour}">{escape(name)}</text>')
    return "\n".join(lines)
