#!/usr/bin/env python3
"""Is a run that was interrupted and resized judged as a steady one? `python3 experiments/interrupted.py f64` (or f32).

Two runs of 1,000 steps of `experiments/computation`, two lanes of 16 pictures: one that nothing disturbs, and one that is killed with
all its processes, goes on with two workers, is drained, goes on with one, and is killed again. Both are judged by all probes of that
study; the result lies in `experiments/results/interrupted/PRECISION.json`. It does not go on where it was broken off. Needs what `run.py` needs, and Linux.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import time
import tomllib
from pathlib import Path

from run import HERE, ROOT, WORK, Commands, fail, judged_by_all, keep, made, pictures

EVERY = 100
SETS = ["batch.lanes=2", "batch.images_per_lane=16", f"checkpoint.every_steps={EVERY}", "train.seed=1"]
# Workers of each part, the step after which it is disturbed, and how; None: not at all.
STEADY = [(1, None, None)]
ENDED = {None: 0, "drain": 130, "kill": -signal.SIGKILL}
EVENTFUL = [(1, 250, "kill"), (2, 500, "drain"), (1, 750, "kill"), (1, None, None)]


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
        started.send_signal(signal.SIGINT)
        return started.wait()
    for pid in family(started.pid):
        # Some end with others.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return started.wait()


def train(run, precision, where, parts):
    """A run in parts; what happened to it, in words."""
    job = HERE / "computation" / "mcl.toml"
    sets = [a for s in [*SETS, f"train.precision={precision}"] for a in ("--set", s)]
    story = []
    for workers, until, how in parts:
        command = ["mcl", "run", job, "--workers", workers, "--devices", "cpu", "--run-dir", where, "--json", *sets]
        run.typed.append(" ".join(map(str, command)).replace(str(ROOT) + "/", ""))
        started = subprocess.Popen([run.mcl, *map(str, command[1:])], cwd=ROOT, stdout=subprocess.DEVNULL)
        while how and committed(where) < until:
            if started.poll() is not None:
                fail(f"`{run.typed[-1]}` ended with {started.returncode} before step {until}")
            time.sleep(0.2)
        ended = disturb(started, how) if how else started.wait()
        if ended != ENDED[how]:
            fail(f"`{run.typed[-1]}` ended with {ended}")
        story.append({"workers": workers, "ended_by": how or "itself", "committed": committed(where)})
    return story


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("precision", choices=("f64", "f32"))
    precision = parser.parse_args().precision
    study = {"name": "computation", **tomllib.loads((HERE / "computation/study.toml").read_text())}
    mcl = Path(os.environ.get("MCL_BIN", ROOT / "target/release/mcl"))
    if not mcl.exists():
        fail(f"{mcl} is missing: `make release` builds it")
    run = Commands(mcl)
    pictures(run, study["data"], WORK / study["name"])
    runs = {name: WORK / "interrupted" / f"{name}-{precision}" for name in ("steady", "eventful")}
    for where in runs.values():
        if where.exists():
            fail(f"{where.relative_to(ROOT)} exists: delete it to have it made again")
    found = {}
    for parts, (name, where) in zip((STEADY, EVENTFUL), runs.items()):
        found[name] = {"parts": train(run, precision, where, parts), "probes": judged_by_all(run, study, "selective", where)}
    trained = {
        name: {p: {k: v["trained"] for k, v in told.items() if isinstance(v, dict) and "trained" in v} for p, told in f["probes"].items()}
        for name, f in found.items()
    }
    same = trained["steady"] == trained["eventful"]
    keep({"name": "interrupted"}, precision, {"precision": precision, "same": same, **found, **made(run)})
    for name, numbers in trained.items():
        print(f"{name}: {numbers}")
    print("the same" if same else "not the same")


if __name__ == "__main__":
    main()
