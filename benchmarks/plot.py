# SPDX-License-Identifier: BSD-3-Clause
"""
The plot: how long N nodes take to meet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .figures import JOIN, REJOIN, Report
from .handlers import C10D, LIVE, TORCHS_V2, V3, V3_BARE

# Names and colours: those of Okabe and Ito, which everybody can tell apart.
_LINES = {
    C10D: ("c10d", "#999999", "o"),
    TORCHS_V2: ("torch's etcd-v2", "#E69F00", "s"),
    V3_BARE: ("etcd-v3 in torch's own handler", "#56B4E9", "v"),
    V3: ("etcd-v3", "#0072B2", "^"),
    LIVE: ("etcd-live", "#D55E00", "D"),
}
_TITLES = {JOIN: "N nodes join at once", REJOIN: "N nodes re-join"}


def plot(report: Report, path: Path) -> None:
    """
    Draw the report into a file; its suffix says of which kind.

    Needs matplotlib: the dependency group `benchmarks`.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    # Text stays text, and two files of the same figures are equal.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "etcd-rendezvous"})
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True)
    sizes = sorted({one.nodes for one in report.find(JOIN)})
    for axis, name in zip(axes, (JOIN, REJOIN), strict=True):
        for backend in _LINES:
            _draw(axis, report, name, backend)
        axis.set_title(_TITLES[name])
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.set_xlabel("nodes")
        axis.grid(visible=True, alpha=0.3)
    axes[0].set_ylabel("seconds")
    axes[0].legend(frameon=False)
    figure.text(
        0.99,
        0.01,
        f"crossed: not done within the limit. {_about(report)}",
        ha="right",
        fontsize="x-small",
    )
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def _draw(axis: Any, report: Report, name: str, backend: str) -> None:
    label, colour, marker = _LINES[backend]
    figures = sorted(report.find(name, backend), key=lambda one: one.nodes)
    if not figures:
        return
    axis.plot(
        [one.nodes for one in figures],
        [one.seconds for one in figures],
        color=colour,
        marker=marker,
        markersize=4,
        label=label,
    )
    late = [one for one in figures if one.unfinished is not None]
    axis.plot(
        [one.nodes for one in late],
        [one.seconds for one in late],
        color=colour,
        marker="x",
        markersize=11,
        linestyle="none",
    )


def _about(report: Report) -> str:
    return ", ".join(f"{key} {value}" for key, value in report.about.items())
