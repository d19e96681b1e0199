"""A run as one static page: curves, figures, per-joint errors, worst cases. Everything is inside the file."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deformer_core.errors import InputError
from deformer_core.training.board import flatten
from deformer_core.training.pictures import Picture

Points = list[tuple[float, float]]
WIDTH, HEIGHT, MARGIN = 500, 230, (52, 12, 30, 10)
"""Pixels of a chart; left, right, bottom and top of its axes."""
COLORS = ("#2f6fb0", "#d1662b", "#3a8f4d", "#8e56a8", "#b3892b", "#2b9b97", "#c2476b", "#667085", "#7a4b2a", "#94a3b8")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2733; background: #f6f7f9; margin: 0 auto; max-width: 1080px;
  padding: 24px }
h1 { font-size: 24px; margin: 0 } h2 { font-size: 18px; margin: 32px 0 8px } .quiet { color: #667085 }
.grid { display: flex; flex-wrap: wrap; gap: 14px } figure { margin: 0; background: #fff; border: 1px solid #e3e6ea;
  border-radius: 6px; padding: 10px } figcaption { font-size: 13px } svg, img { display: block; width: 500px }
table { border-collapse: collapse; background: #fff; border: 1px solid #e3e6ea; font-variant-numeric: tabular-nums }
th, td { padding: 3px 12px; text-align: right; border-bottom: 1px solid #eef0f3 } th:first-child, td:first-child {
  text-align: left } .bar { background: #2f6fb0; height: 10px; display: inline-block }
svg text { font: 11px system-ui, sans-serif; fill: #667085 }
"""


@dataclass(frozen=True)
class WorstCase:
    """picture: of `pictures.draw_person`. error: PA-MPJPE, mm."""

    name: str
    error: float
    picture: Picture


def read_metrics(path: Path) -> dict[str, Points]:
    """Curves of a run's `metrics.jsonl` by name, validation's as validation/<set>/<figure>; steps as they were written
    last, so that a run that was stopped and went on has each once. A line cut off by a stop is left out.

    Errors: `InputError` if there is no such file, or nothing in it.
    """
    curves: dict[str, dict[float, float]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give the folder of a training run") from error
    for line in lines:
        try:
            entry = json.loads(line)
            step = entry.pop("step")
        except (json.JSONDecodeError, KeyError, AttributeError):
            continue
        entry.pop("best", None)
        for name, value in flatten(entry):
            curves.setdefault(name, {})[step] = value
    if not curves:
        raise InputError(f"{path} holds no figures yet: train for log_every steps first")
    return {name: sorted(points.items()) for name, points in curves.items()}


def group_curves(curves: Mapping[str, Points]) -> dict[str, dict[str, Points]]:
    """Charts by title. A loss that is always 0 is left out."""
    charts: dict[str, dict[str, Points]] = {"loss": {}, "loss terms": {}, "samples a second": {}, "learning rate": {}}
    names = {"total": "loss", "samples_per_s": "samples a second", "rate": "learning rate", "gradient": "gradient norm"}
    for name, points in curves.items():
        if not any(value for _, value in points):
            continue
        if name.startswith("validation/"):
            _, subset, figure = name.split("/", 2)
            charts.setdefault(f"validation: {figure}", {})[subset] = points
        else:
            charts.setdefault(names.get(name, "loss terms"), {})[name] = points
    return {title: lines for title, lines in charts.items() if lines}


def chart(title: str, lines: Mapping[str, Points]) -> str:
    """Lines over the step as SVG, with a legend where there are several."""
    left, right, bottom, top = MARGIN
    every = np.array([point for points in lines.values() for point in points if math.isfinite(point[1])]).reshape(-1, 2)
    if not len(every):
        return ""
    (x0, y0), (x1, y1) = every.min(0), every.max(0)
    y0 = min(y0, 0.0) if y0 < 0.5 * y1 else y0
    span_x, span_y = max(x1 - x0, 1e-12), max(y1 - y0, 1e-12 + 0.02 * abs(y1))
    plot_width, plot_height = WIDTH - left - right, HEIGHT - bottom - top

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (x - x0) / span_x * plot_width, top + (1 - (y - y0) / span_y) * plot_height

    parts = []
    for tick in ticks(y0, y0 + span_y):
        y = place(x0, tick)[1]
        parts.append(f'<line x1="{left}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#eef0f3"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in ticks(x0, x1):
        parts.append(f'<text x="{place(tick, y0)[0]:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{tick:g}</text>')
    legend = []
    for number, (name, points) in enumerate(lines.items()):
        color = COLORS[number % len(COLORS)]
        spots = [place(*point) for point in points if math.isfinite(point[1])]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.6"/>')
        if len(spots) < 30:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2" fill="{color}"/>' for x, y in spots]
        last = points[-1][1]
        legend.append(f'<span style="color:{color}">&#9632;</span> {html.escape(name)} {last:.4g}')
    return (
        f"<figure><b>{html.escape(title)}</b><svg viewBox='0 0 {WIDTH} {HEIGHT}'>{''.join(parts)}</svg>"
        f"<figcaption class='quiet' style='max-width:{WIDTH}px'>{' &nbsp; '.join(legend)}</figcaption></figure>"
    )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from low to high."""
    raw = max(high - low, 1e-12) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw)
    return [round(k * step, 12) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def figures_table(figures: Mapping[str, Any]) -> str:
    """Figures as rows, sets as columns; below, why sets were not measured. figures: {model: {set: ...}}."""
    leaves = _leaves(next(iter(figures.values())) if len(figures) == 1 else figures)
    sets = {name: row for name, row in leaves if isinstance(row, Mapping)}
    rows = [f"<tr><th></th>{''.join(f'<th>{html.escape(name)}</th>' for name in sets)}</tr>"]
    for figure in dict.fromkeys(key for row in sets.values() for key in row):
        cells = "".join(f"<td>{_number(row.get(figure))}</td>" for row in sets.values())
        rows.append(f"<tr><td>{html.escape(figure)}</td>{cells}</tr>")
    rest = [f"<p>{html.escape(name)}: {html.escape(row)}</p>" for name, row in leaves if isinstance(row, str)]
    return f"<div style='overflow-x:auto'><table>{''.join(rows)}</table></div>{''.join(rest)}"


def _leaves(figures: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, row in figures.items():
        if isinstance(row, Mapping) and any(isinstance(value, Mapping) for value in row.values()):
            found += _leaves(row, f"{prefix}{name} / ")
        else:
            found.append((prefix + name, row))
    return found


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ("" if value is None else html.escape(str(value)))


def joints_table(errors: Mapping[str, Mapping[str, float]]) -> str:
    """errors: {figure: {joint: mm}}. One row a joint, a bar for the last figure."""
    names = list(errors)
    largest = max(errors[names[-1]].values(), default=1.0) or 1.0
    rows = []
    for joint in errors[names[0]]:
        cells = "".join(f"<td>{errors[name][joint]:.1f}</td>" for name in names)
        bar = f"<span class='bar' style='width:{200 * errors[names[-1]][joint] / largest:.0f}px'></span>"
        rows.append(f"<tr><td>{html.escape(joint)}</td>{cells}<td style='text-align:left'>{bar}</td></tr>")
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    return f"<table><tr><th>joint</th>{head}<th></th></tr>{''.join(rows)}</table>"


def worst_cases(cases: Sequence[WorstCase]) -> str:
    import cv2

    shown = []
    for case in cases:
        data = cv2.imencode(".jpg", np.ascontiguousarray(case.picture[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
        text = base64.b64encode(data.tobytes()).decode()
        caption = f"<figcaption><b>{case.error:.0f} mm</b> {html.escape(case.name)}</figcaption>"
        shown.append(f"<figure><img src='data:image/jpeg;base64,{text}' alt=''>{caption}</figure>")
    return f"<div class='grid'>{''.join(shown)}</div>"


def page(title: str, about: str, sections: Mapping[str, str]) -> str:
    """The whole document. sections: HTML by heading, in order."""
    body = "".join(f"<h2>{html.escape(heading)}</h2>{content}" for heading, content in sections.items())
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1><p class='quiet'>{html.escape(about)}</p>{body}</html>\n"
    )
