#!/usr/bin/env python3
"""Draws the curves of a study: `python3 experiments/plot.py objects docs/results/learning-objects.png`, or of a run directory with
evaluations by neighbours. Needs matplotlib.

A line is the mean over the seeds there are, the band their least and largest; raw pixels and random weights are dashed.
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results"
PARTS = {"objects": "crops of objects", "scenes": "boxes of scenes, 256 px"}
FLOORS = {"pixels": "raw pixels", "random": "random weights"}


def of_study(study):
    """Rows of each arm, one list a seed."""
    curves = {}
    for file in sorted((RESULTS / study).glob("curve-*.json")):
        kept = json.loads(file.read_text())
        curves.setdefault(kept["arm"], []).append(kept["rows"])
    if not curves:
        raise SystemExit(f"plot: no curves in {RESULTS / study}: `experiments/run.py {study} --curves` makes them")
    return curves


def of_run(file):
    """Rows of a run's evaluations by neighbours."""
    rows = []
    for line in file.read_text().splitlines():
        row = json.loads(line)
        by_part = {x["on"]: x for x in row["accuracies"] if x["probe"] == "knn"}
        if set(PARTS) - set(by_part):
            raise SystemExit(f"plot: {file} lacks neighbours on {sorted(set(PARTS) - set(by_part))} after {row['step']} steps")
        rows.append({"step": row["step"], **by_part})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="a study, or a run directory")
    parser.add_argument("out", type=Path)
    a = parser.parse_args()
    evaluations = Path(a.study) / "evaluations.jsonl"
    curves = {Path(a.study).name: [of_run(evaluations)]} if evaluations.is_file() else of_study(a.study)
    figure, axes = plt.subplots(1, len(PARTS), figsize=(11, 4.2), sharey=True, layout="constrained")
    for axis, (part, title) in zip(axes, PARTS.items()):
        for arm, seeds in curves.items():
            at = {}
            for rows in seeds:
                for row in rows:
                    at.setdefault(row["step"], []).append(row[part]["trained"])
            steps = sorted(step for step, values in at.items() if len(values) == len(seeds))
            line, = axis.plot(steps, [sum(at[s]) / len(at[s]) for s in steps], marker=".", label=f"{arm} ({len(seeds)})")
            axis.fill_between(steps, [min(at[s]) for s in steps], [max(at[s]) for s in steps], color=line.get_color(), alpha=0.2)
        floors = [row[part] for seeds in curves.values() for rows in seeds for row in rows]
        for (floor, name), shade in zip(FLOORS.items(), ("0.3", "0.6")):
            value = sum(row[floor] for row in floors) / len(floors)
            axis.axhline(value, color=shade, linestyle="--", linewidth=1, label=name)
        axis.set(title=title, xlabel="step", ylim=(0, 1))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy of 20 nearest neighbours")
    axes[1].legend(fontsize=8)
    figure.savefig(a.out, dpi=110)


if __name__ == "__main__":
    main()
