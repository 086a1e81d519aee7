# SPDX-License-Identifier: BSD-3-Clause
"""
The plots of the pages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .figures import GOES_ON, JOIN, REJOIN, Figure, Report
from .names import C10D, LIVE, TORCHS_V2, V3, V3_BARE

# Names and colours: those of Okabe and Ito, which everybody can tell apart.
_LINES = {
    C10D: ("c10d", "#999999", "o"),
    TORCHS_V2: ("torch's etcd-v2", "#E69F00", "s"),
    V3_BARE: ("etcd-v3 in torch's own handler", "#56B4E9", "v"),
    V3: ("etcd-v3", "#0072B2", "^"),
    LIVE: ("etcd-live", "#D55E00", "D"),
}
_TITLES = {JOIN: "N nodes join at once", REJOIN: "N nodes re-join"}
_SETTINGS = {"defaults": "defaults", "equal": "heartbeats 5 s x 3, last call 1 s"}
_WAYS = {
    "elastic, other": "any other node dies,\ntwo of three go on",
    "elastic, rank0": "rank 0 dies,\ntwo of three go on",
    "spare, other": "any other node dies,\na spare steps in",
    "spare, rank0": "rank 0 dies,\na spare steps in",
}


def plots(report: Report, folder: Path, digest: str) -> list[Path]:
    """
    Draw all plots, as SVG; return the files. Needs matplotlib.

    Args:
        report: The figures.
        folder: Where they go.
        digest: Stands in them, to tell from which figures they were drawn.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    # Text stays text, and two files of the same figures are equal.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "etcd-rendezvous"})
    from matplotlib import pyplot as plt

    drawn = {"node-death.svg": _node_death, "meetings.svg": _meetings}
    for name, draw in drawn.items():
        figure = draw(plt, report)
        about = {"Date": None, "Description": f"figures {digest}"}
        figure.savefig(folder / name, metadata=about)
        plt.close(figure)
    return [folder / name for name in drawn]


# -- node deaths ----------------------------------------------------------------------


def _node_death(plt: Any, report: Report) -> Any:
    names = report.names(GOES_ON)
    shown = {
        settings: [way for way in _WAYS if f"{GOES_ON}{settings}, {way}" in names]
        for settings in _SETTINGS
    }
    shown = {settings: found for settings, found in shown.items() if found}
    rows = max((len(found) for found in shown.values()), default=1)
    figure, axes = plt.subplots(
        1,
        max(len(shown), 1),
        figsize=(9, 1 + 1.1 * rows),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for axis, (settings, found) in zip(axes[0], shown.items(), strict=False):
        for row, way in enumerate(found):
            bars = report.find(f"{GOES_ON}{settings}, {way}")
            for place, one in enumerate(bars):
                _bar(
                    axis, row + 0.8 * ((place + 0.5) / len(bars) - 0.5), one, len(bars)
                )
        axis.set_title(_SETTINGS[settings], fontsize="medium")
        axis.set_yticks(range(len(found)), [_WAYS[way] for way in found])
        axis.set_xlabel("seconds until the first new step")
        axis.grid(visible=True, axis="x", alpha=0.3)
        axis.set_axisbelow(b=True)
    if shown:
        axes[0][0].invert_yaxis()
    there = [one for one in _LINES if any(f.backend == one for f in report.figures)]
    handles = [plt.Rectangle((0, 0), 1, 1, color=_LINES[one][1]) for one in there]
    labels = [_LINES[one][0] for one in there]
    figure.legend(
        handles, labels, loc="lower center", ncols=max(len(there), 1), frameon=False
    )
    figure.tight_layout(rect=(0, 0.3 / (1 + 1.1 * rows), 1, 1))
    return figure


def _bar(axis: Any, y: float, one: Figure, bars: int) -> None:
    colour = _LINES[one.backend][1]
    height = 0.75 / bars
    if one.finished:
        axis.barh(y, one.seconds, height, color=colour)
        return
    length = one.unfinished or 0.0
    if length:
        axis.barh(y, length, height, fill=False, edgecolor=colour, hatch="///")
    text = f"not within {length:.0f} s" if length else f"never: {one.failure}"
    axis.text(
        2.0,
        y,
        text,
        va="center",
        fontsize="x-small",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
    )


# -- meetings -------------------------------------------------------------------------


def _meetings(plt: Any, report: Report) -> Any:
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True)
    sizes = sorted({one.nodes for one in report.find(JOIN)})
    for axis, name in zip(axes, (JOIN, REJOIN), strict=True):
        for backend in _LINES:
            _line(axis, report, name, backend)
        axis.set_title(_TITLES[name], fontsize="medium")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.set_xlabel("nodes; crossed: not within the limit")
        axis.grid(visible=True, alpha=0.3)
    axes[0].set_ylabel("seconds")
    if sizes:
        axes[0].legend(frameon=False)
    figure.tight_layout()
    return figure


def _line(axis: Any, report: Report, name: str, backend: str) -> None:
    label, colour, marker = _LINES[backend]
    figures = sorted(report.find(name, backend), key=lambda one: one.nodes)
    shown = [one for one in figures if one.finished or one.unfinished]
    if not shown:
        return
    times = [one.seconds if one.finished else one.unfinished for one in shown]
    axis.plot(
        [one.nodes for one in shown],
        times,
        color=colour,
        marker=marker,
        markersize=4,
        label=label,
    )
    late = [one for one in shown if not one.finished]
    axis.plot(
        [one.nodes for one in late],
        [one.unfinished for one in late],
        color=colour,
        marker="x",
        markersize=11,
        linestyle="none",
    )
