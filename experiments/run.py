#!/usr/bin/env python3
"""Runs what is left of a study, cell by cell: `python3 experiments/run.py objects [--arm A] [--seed N] [--list]`.

A cell is one arm with one seed. Its result lies in `experiments/results/STUDY/ARM-sSEED.json`, with the commands that made it, and
is not made again; delete the file to have it judged again, and the run or detector too to have that made again. Pictures, runs and
detectors lie in `.experiments/`; one that was made in another way than the study now says is refused. What was broken off goes on
from its checkpoint; its cost is then that of the rest, and the result says so. Needs `make release` (or MCL_BIN: another `mcl`),
and Python 3.11.

`--curves` judges every checkpoint of finished runs (neighbours alone) into `curve-ARM-sSEED.json`; `experiments/plot.py` draws them.

`--finetune SET` trains a detector from each arm's weights, and one from scratch, as `[finetune.SET]` of the study says; the results
lie beside the others, in `SET-ARM-sSEED.json`. Needs a Python with examples/torchvision/requirements.txt: MCL_PYTHON names it.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
import tomllib
from datetime import datetime, timezone
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WORK = ROOT / ".experiments"


def fail(message):
    raise SystemExit(f"experiments: {message}")


class Commands:
    """Runs commands and remembers them as a reader would type them in the project's root."""

    def __init__(self, mcl):
        self.mcl = mcl
        self.typed = []

    def __call__(self, *arguments, remember=True):
        command = [str(a) for a in arguments]
        if remember:
            self.remember(command)
        done = subprocess.run([self.mcl, *command[1:]], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            fail(f"`{' '.join(command)}` ended with {done.returncode}")
        return done.stdout

    def remember(self, command):
        self.typed.append(" ".join(map(str, command)).replace(str(ROOT) + "/", ""))


def program():
    """The `mcl` that is run."""
    return Path(os.environ.get("MCL_BIN", ROOT / "target/release/mcl"))


def built(mcl):
    if not mcl.exists():
        fail(f"{mcl} is missing: `make release` builds it")


def load(name):
    return {"name": name, **tomllib.loads((HERE / name / "study.toml").read_text())}


def overrides(sets):
    return [a for s in sets for a in ("--set", s)]


def pictures(run, data, folder):
    """Generates pictures where they lack or are others; objects get a list with labels, for the supervised arm."""
    for name, spec in data.items():
        out = folder / name
        made_of = out / "spec.json"
        if made_of.exists() and json.loads(made_of.read_text()) == spec:
            continue
        shutil.rmtree(out, ignore_errors=True)
        size = ["--size", spec["size"]] if "size" in spec else []
        run("mcl", "data", "generate", spec["kind"], "--count", spec["count"], "--seed", spec["seed"], *size, "--out", out, remember=False)
        coco = json.loads((out / "annotations.json").read_text())
        label = {a["image_id"]: a["category_id"] for a in coco["annotations"]}
        rows = [f"images/{i['file_name']},{label[i['id']]}" for i in coco["images"]]
        (out / "pictures.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
        made_of.write_text(json.dumps(spec))


def cpu_seconds():
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def pretrain(run, study, arm, seed, folder, steps):
    """Pre-trains, or goes on; the run directory, and what all its processes cost, in seconds of CPU and of the clock."""
    where = folder / "runs" / f"{arm}-s{seed}"
    finished = where / "finished.json"
    job = HERE / study["name"] / study["arms"][arm]["job"]
    sets = [f"train.seed={seed}", *study["arms"][arm].get("set", [])]
    if steps is not None:
        sets.append(f"train.steps={steps}")
    made_of = {"job": job.read_text(), "sets": sets, "pictures": study.get("data", {}).get("train")}
    if not finished.exists():
        before, started = cpu_seconds(), time.monotonic()
        resumed = where.exists()
        out = run("mcl", "run", job, "--workers", 1, "--devices", "cpu", "--run-dir", where, "--json", *overrides(sets))
        told = json.loads(out.splitlines()[-1])
        cost = {"cpu_seconds": cpu_seconds() - before, "wall_seconds": time.monotonic() - started, "resumed": resumed}
        finished.write_text(json.dumps({"told": told, "cost": cost, "commands": run.typed, "made_of": made_of}))
    done = json.loads(finished.read_text())
    if done.get("made_of") != made_of:
        fail(f"{where.relative_to(ROOT)} was made of another recipe, other pictures or steps: delete it to have it made again")
    run.typed[:] = done["commands"]
    return where, done


def encoder(study, arm):
    return study["arms"][arm].get("encoder", "momentum")


def judged(run, study, arm, weights, probe):
    """What a probe of the study says of an arm's weights: by its name, or by the names of both."""
    folder = WORK / study["name"]
    out = run(
        "mcl", "eval", probe["by"], weights, "--encoder", encoder(study, arm), "--json",
        "--train", folder / "train", "--test", folder / "test", "--scenes", folder / "scenes", *probe.get("with", []),
    )
    told = json.loads(out.splitlines()[-1])
    return told if probe["by"] == "both" else {probe["by"]: told}


def judged_by_all(run, study, arm, weights):
    """The same by every probe, under the names that the study has for them."""
    found = {}
    for probe in study.get("probes", []):
        told = judged(run, study, arm, weights, probe)
        found |= {name: told[by] for by, name in probe["names"].items()}
    return found


def trained(probes):
    """What of all that probes said is the trained weights', by probe and by what they were judged on."""
    return {p: {on: v["trained"] for on, v in told.items() if isinstance(v, dict) and "trained" in v} for p, told in probes.items()}


def result_file(study, name):
    return HERE / "results" / study["name"] / f"{name}.json"


def keep(study, name, row):
    """Writes a cell's result, as the last thing of all that makes it."""
    file = result_file(study, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(row, indent=1) + "\n")


def made(run):
    """How, of what, where and when a cell was made."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return {
        "commands": run.typed,
        "commit": commit.stdout.strip() or "not known",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def finished_cells(study, name):
    """Results of an arm, one a seed."""
    return [json.loads(file.read_text()) for file in sorted(result_file(study, name).parent.glob(f"{name}-s[0-9]*.json"))]


def cell(study, arm, seed, mcl):
    folder = WORK / study["name"]
    run = Commands(mcl)
    judges = ("train", "test", "scenes") if study.get("probes") else ()
    pictures(run, {name: study["data"][name] for name in judges}, folder)
    steps = equal_steps(study, arm, seed)
    where, done = pretrain(run, study, arm, seed, folder, steps)
    probes = judged_by_all(run, study, arm, where)
    ended = done["told"]
    row = {
        "study": study["name"],
        "arm": arm,
        "seed": seed,
        "steps": ended["steps"],
        "pictures": ended["steps"] * study["batch"],
        "loss": ended["loss"],
        "gap_closed": ended["gap_closed"],
        "cost": done["cost"],
        "probes": probes,
        **made(run),
    }
    keep(study, f"{arm}-s{seed}", row)
    brief = {probe: {on: round(share, 3) for on, share in shares.items()} for probe, shares in trained(probes).items()}
    print(f"{arm} seed {seed}: {brief or 'pre-trained'}", flush=True)


SCRATCH = "scratch"


def pretrained(study, arm, seed):
    """The run of an arm, which is to be finished."""
    where = WORK / study["name"] / "runs" / f"{arm}-s{seed}"
    if not (where / "finished.json").exists():
        fail(f"{where.relative_to(ROOT)} is not finished: run {study['name']} --arm {arm} --seed {seed} first")
    return where


def finetuned(study, name, arm, seed, mcl):
    """A detector on top of an arm's backbone, or of none."""
    folder = WORK / study["name"]
    spec = study["finetune"][name]
    run = Commands(mcl)
    names = [spec[side] for side in ("train", "val") if isinstance(spec[side], str)]
    pictures(run, {name: study["data"][name] for name in names}, folder)
    out = folder / "finetuned" / f"{name}-{arm}-s{seed}"
    out.mkdir(parents=True, exist_ok=True)
    start = ["--scratch"]
    if arm != SCRATCH:
        weights = out / "backbone.pth"
        where = pretrained(study, arm, seed)
        run("mcl", "checkpoint", "export", where, "--format", "torchvision", "--encoder", encoder(study, arm), "--out", weights)
        start = ["--weights", weights]
    sets = []
    for side in ("train", "val"):
        images, annotations = located(folder, spec, side)
        sets += [f"--{side}-images", images, f"--{side}-annotations", annotations]
    before, started = cpu_seconds(), time.monotonic()
    program = ROOT / "examples/torchvision/finetune.py"
    command = [program, *start, *sets, "--out", out, "--seed", seed, *spec["with"]]
    run.remember(["python3", *command])
    resumed = (out / "last.pt").exists()
    python = os.environ.get("MCL_PYTHON", sys.executable)
    if subprocess.run([python, *map(str, command)], cwd=ROOT, stdout=subprocess.DEVNULL).returncode != 0:
        fail(f"`{run.typed[-1]}` failed")
    ended = json.loads((out / "result.json").read_text())
    row = {
        "study": study["name"],
        "set": name,
        "arm": arm,
        "seed": seed,
        **{key: ended[key] for key in ("AP", "AP50", "AP75")},
        "cost": {"cpu_seconds": cpu_seconds() - before, "wall_seconds": time.monotonic() - started, "resumed": resumed},
        **made(run),
    }
    keep(study, f"{name}-{arm}-s{seed}", row)
    print(f"{name}, {arm} seed {seed}: AP {row['AP']:.3f}, AP50 {row['AP50']:.3f}", flush=True)


def located(folder, spec, side):
    """Images and annotations of a set: generated by the study, or in folders that are named from the project's root."""
    where = spec[side]
    if isinstance(where, str):
        return folder / where / "images", folder / where / "annotations.json"
    return where["images"], where["annotations"]


def finetune_table(study, name):
    """Finished fine-tunings by arm, as Markdown."""
    print("| start | seeds | AP50 | AP |\n|---|---|---|---|")
    for arm in (SCRATCH, *study["arms"]):
        cells = finished_cells(study, f"{name}-{arm}")
        if cells:
            numbers = [told([c[key] for c in cells]) for key in ("AP50", "AP")]
            print(f"| {arm} | {len(cells)} | " + " | ".join(numbers) + " |")


def curve(study, arm, seed, mcl):
    """Neighbours by step, of every checkpoint that is left of a finished run."""
    run = Commands(mcl)
    where = pretrained(study, arm, seed)
    metrics = (json.loads(line) for line in (where / "metrics.jsonl").read_text().splitlines())
    losses = {row["step"] + 1: row["loss"] for row in metrics}
    rows = []
    for checkpoint in sorted((where / "checkpoints").glob("step-*")):
        said = judged(run, study, arm, checkpoint, {**study["probes"][0], "by": "knn"})["knn"]
        step = int(checkpoint.name.removeprefix("step-"))
        rows.append({"step": step, "objects": said["objects"], "scenes": said["scenes"], "loss": losses[step]})
    keep(study, f"curve-{arm}-s{seed}", {"study": study["name"], "arm": arm, "seed": seed, "rows": rows, "commands": run.typed})
    print(f"curve of {arm} seed {seed}: {len(rows)} checkpoints", flush=True)


def equal_steps(study, arm, seed):
    """Steps of an arm that is to cost as much CPU as another: by what both cost a step with this seed."""
    as_long = study["arms"][arm].get("as_long_as")
    if as_long is None:
        return study["arms"][arm].get("steps")
    of = {}
    for name in (as_long, study["arms"][arm]["as"]):
        file = result_file(study, f"{name}-s{seed}")
        if not file.exists():
            fail(f"{arm} costs as much as {as_long}: {file.relative_to(ROOT)} is to be made first")
        row = json.loads(file.read_text())
        if row["cost"]["resumed"]:
            fail(f"{file.relative_to(ROOT)} was broken off, so its cost is not known: delete it and its run to have it made again")
        of[name] = (row["cost"]["cpu_seconds"], row["steps"])
    total, _ = of[as_long]
    seconds, steps = of[study["arms"][arm]["as"]]
    return round(total / (seconds / steps))


def told(values, digits=3):
    """The mean, and the least and the largest where they differ."""
    mean = sum(values) / len(values)
    spread = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if min(values) < max(values) else ""
    return f"{mean:.{digits}f}{spread}"


def table(study):
    """Finished cells by arm, as Markdown: mean over seeds, and the least and the largest where there are several."""
    columns = [(name, where) for probe in study.get("probes", []) for name in probe["names"].values() for where in probe["tells"]]
    print(" | ".join(["| arm | seeds | pictures | CPU s", *(f"{probe}, {where}" for probe, where in columns)]) + " |")
    print("|---|---|---|---|" + "---|" * len(columns))

    rows = {arm: cells for arm in study["arms"] if (cells := finished_cells(study, arm))}
    for arm, cells in rows.items():
        cost = told([c["cost"]["cpu_seconds"] for c in cells], 0)
        numbers = [told([c["probes"][probe][where]["trained"] for c in cells]) for probe, where in columns]
        pictures = told([c["pictures"] for c in cells], 0)
        print(" | ".join([f"| {arm} | {len(cells)} | {pictures} | {cost}", *numbers]) + " |")
    everything = [c for cells in rows.values() for c in cells]
    for floor in ("random", "pixels") if everything and columns else ():
        numbers = [told([c["probes"][probe][where][floor] for c in everything]) for probe, where in columns]
        print(f"| {floor} | | | | " + " | ".join(numbers) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--arm", action="append", help="only these arms")
    parser.add_argument("--seed", type=int, action="append", help="only these seeds")
    parser.add_argument("--finetune", metavar="SET", help="train detectors on this set, from finished arms and from scratch")
    parser.add_argument("--curves", action="store_true", help="judge every checkpoint of finished runs")
    parser.add_argument("--table", action="store_true", help="print the results so far as a table")
    parser.add_argument("--list", action="store_true", help="say which cells are done and which are left")
    a = parser.parse_args()
    file = HERE / a.study / "study.toml"
    if not file.is_file():
        fail(f"no study `{a.study}`: there are {sorted(p.parent.name for p in HERE.glob('*/study.toml'))}")
    study = load(a.study)
    if a.finetune and a.finetune not in study.get("finetune", {}):
        fail(f"no set `{a.finetune}` to fine-tune on: there are {sorted(study.get('finetune', {}))}")
    if a.curves and not study.get("probes"):
        fail(f"study `{a.study}` has no probes")
    if a.table:
        return finetune_table(study, a.finetune) if a.finetune else table(study)
    arms = [*study["finetune"][a.finetune]["arms"], SCRATCH] if a.finetune else list(study["arms"])
    for arm in a.arm or []:
        if arm not in arms:
            fail(f"no arm `{arm}`: there are {arms}")
    mcl = program()
    prefix = f"{a.finetune}-" if a.finetune else "curve-" if a.curves else ""
    for seed in a.seed or study["seeds"]:
        for arm in a.arm or arms:
            done = result_file(study, f"{prefix}{arm}-s{seed}").exists()
            if a.list:
                print(f"{'done' if done else 'left'}  {prefix}{arm} seed {seed}")
            elif not done:
                built(mcl)
                if a.finetune:
                    finetuned(study, a.finetune, arm, seed, mcl)
                elif a.curves:
                    curve(study, arm, seed, mcl)
                else:
                    cell(study, arm, seed, mcl)


if __name__ == "__main__":
    sys.exit(main())
