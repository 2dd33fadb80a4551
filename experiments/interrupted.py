#!/usr/bin/env python3
"""Is a run that was interrupted and resized judged as a steady one? `python3 experiments/interrupted.py f64` (or f32).

Two runs of 1,000 steps of `experiments/computation`, two lanes of 16 pictures: one that nothing disturbs, and one that is killed with
all its processes, goes on with two workers, is drained, goes on with one, and is killed again. Both are judged by all probes of that
study; the result lies in `experiments/results/interrupted/PRECISION.json`. It does not go on where it was broken
off. Needs what `run.py` needs, and Linux.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

from run import HERE, ROOT, WORK, Commands, built, fail, judged_by_all, keep, load, made, overrides, pictures, program, trained

SETS = ["batch.lanes=2", "batch.images_per_lane=16", "checkpoint.every_steps=100", "train.seed=1"]
# Workers of each part, the step after which it is disturbed, and how; None: not at all.
STEADY = [(1, None, None)]
EVENTFUL = [(1, 250, "kill"), (2, 500, "drain"), (1, 750, "kill"), (1, None, None)]
# What each then ends with.
ENDED = {None: 0, "drain": 130, "kill": -signal.SIGKILL}


def family(pid):
    """A process and all below it."""
    try:
        below = [child for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]
    except FileNotFoundError:
        below = []
    return [pid, *(p for child in below for p in family(int(child)))]


def committed(where):
    metrics = where / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def disturb(started, how):
    """Kills a run and all its processes, or asks it to end."""
    if how == "drain":
        return started.send_signal(signal.SIGINT)
    for pid in family(started.pid):
        # Some end with others.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def train(run, precision, where, parts):
    """A run in parts; what happened to it, in words."""
    job = HERE / "computation" / "mcl.toml"
    sets = overrides([*SETS, f"train.precision={precision}"])
    story = []
    for workers, until, how in parts:
        command = ["mcl", "run", job, "--workers", workers, "--devices", "cpu", "--run-dir", where, "--json", *sets]
        run.remember(command)
        started = subprocess.Popen([run.mcl, *map(str, command[1:])], cwd=ROOT, stdout=subprocess.DEVNULL)
        while how and committed(where) < until:
            if started.poll() is not None:
                fail(f"`{run.typed[-1]}` ended with {started.returncode} before step {until}")
            time.sleep(0.2)
        if how:
            disturb(started, how)
        if (ended := started.wait()) != ENDED[how]:
            fail(f"`{run.typed[-1]}` ended with {ended}")
        story.append({"workers": workers, "ended_by": how or "itself", "committed": committed(where)})
    return story


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("precision", choices=("f64", "f32"))
    precision = parser.parse_args().precision
    study, mcl = load("computation"), program()
    built(mcl)
    run = Commands(mcl)
    pictures(run, study["data"], WORK / study["name"])
    runs = {name: WORK / "interrupted" / f"{name}-{precision}" for name in ("steady", "eventful")}
    for where in runs.values():
        if where.exists():
            fail(f"{where.relative_to(ROOT)} exists: delete it to have it made again")
    found = {}
    for parts, (name, where) in zip((STEADY, EVENTFUL), runs.items()):
        found[name] = {"parts": train(run, precision, where, parts), "probes": judged_by_all(run, study, "selective", where)}
    numbers = {name: trained(told["probes"]) for name, told in found.items()}
    same = numbers["steady"] == numbers["eventful"]
    keep({"name": "interrupted"}, precision, {"precision": precision, "same": same, **found, **made(run)})
    for name, told in numbers.items():
        print(f"{name}: {told}")
    print("the same" if same else "not the same")


if __name__ == "__main__":
    main()
