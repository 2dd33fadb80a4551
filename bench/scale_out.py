"""A model of a step's time on many ranks, from parts that are measured, checked against ranks of this machine.

    step(W) = compute + gathers x gather(W) + exposed(W)

`compute` is a rank's step without talk; `gathers` are the small collectives of norms (forward, and backward of what is
trained), of targets and of the agreement; `exposed` is what of the gradients' all-reduce is not hidden behind the backward
pass: all of it where ranks and network share cores, as here. `make scale-out` runs it and writes docs/results/.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

from programs import Program, free_port, spread

ROOT = Path(__file__).resolve().parent.parent
# Targets and agreement.
OTHER_GATHERS = 2
# Both sides' targets of a lane of 128 pictures, 256 numbers each, as published.
TARGET_BYTES = 2 * 128 * 256 * 4

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--binaries", type=Path, default=ROOT / "target/release")
parser.add_argument("--out", type=Path, help="Markdown file; default docs/results/scale-out-<host kind>.md")
parser.add_argument("--turns", type=int, default=7)
a = parser.parse_args()

# Steps that are predicted and measured: name, size, worlds.
CASES = (
    ("R18, 64 px, 8 pictures", ["--depth", "18", "--image-size", "64", "--images", "8"], (2, 3, 4)),
    ("R18, 96 px, 16 pictures", ["--depth", "18", "--image-size", "96", "--images", "16"], (2,)),
)


def step(*arguments):
    return [a.binaries / "mcl", "bench", "step", *arguments]


def ranks(world, arguments):
    """Command lines of a world's ranks, which find each other at a free port."""
    port = free_port()
    common = [*arguments, "--world", str(world), "--port", port]
    return [step(*common, "--rank", str(rank)) for rank in range(world)]


def parts(world, size):
    """What one step says, and what saying it costs in a world of this size on this machine."""
    commands = [[str(part) for part in command] for command in ranks(world, [*size, "--parts"])]
    others = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands[1:]]
    out = subprocess.run(commands[0], check=True, capture_output=True, text=True).stdout
    if any(other.wait() for other in others):
        sys.exit("a rank failed")
    return json.loads(out)


def turns(programs):
    """Wall times of steps that all programs take at once; the slowest counts."""
    for program in programs:
        program.go()
    return max(program.answer()["wall_s"] for program in programs)


def measure(world, size):
    """Wall times of a step by turns: of as many processes that do not talk, and of ranks that do."""
    core = lambda rank: rank % os.cpu_count()
    alone = [Program([*step(*size), "--paced"], core(rank)) for rank in range(world)]
    for program in alone:
        program.ready()
    together = [Program([*command, "--paced"], core(rank)) for rank, command in enumerate(ranks(world, size))]
    together[0].ready()
    times = []
    for _ in range(a.turns):
        single = turns(alone)
        times.append((single, turns(together[:1])))
    for program in (*alone, *together):
        program.end()
    return times


def check():
    rows = []
    for name, size, worlds in CASES:
        for world in worlds:
            told = parts(world, size)
            times = measure(world, size)
            compute = spread([single for single, _ in times])
            gathers = told["norms_forward"] + told["norms_backward"] + OTHER_GATHERS
            talk = gathers * told["small_gather_s"] + told["gradient_reduce_s"]
            seen = spread([both for _, both in times])
            predicted = compute[0] + talk
            rows.append((name, world, gathers, told, compute[0], predicted, seen, predicted / seen[0]))
            print(f"{name}, {world} ranks: compute {compute[0]:.3f} s, talk {talk:.3f} s, predicted {predicted:.3f} s, seen {seen[0]:.3f} s", flush=True)
    return rows


def ring(world, size, latency, bandwidth, passes):
    """Seconds of a ring collective: `passes` rounds (1 gathers, 2 reduce) of world - 1 messages of a share each."""
    return passes * (world - 1) * (latency + size / world / bandwidth)


def beyond(told):
    """Milliseconds of talk in one R50 step, for links that are assumed."""
    gathers = told["norms_forward"] + told["norms_backward"] + OTHER_GATHERS
    rows = []
    for name, latency, bandwidth in (("3 us, 200 GB/s", 3e-6, 2e11), ("8 us, 40 GB/s", 8e-6, 4e10), ("20 us, 10 GB/s", 2e-5, 1e10)):
        for world in (8, 64, 512):
            small = ring(world, world * 4 * 513, latency, bandwidth, 1)
            targets = ring(world, world * TARGET_BYTES, latency, bandwidth, 1)
            reduce = ring(world, told["gradient_bytes"], latency, bandwidth, 2)
            statistics = ring(world, told["running_bytes"], latency, bandwidth, 2)
            # The agreement is as small as a norm's statistics.
            sync = (gathers - OTHER_GATHERS + 1) * small + targets
            rows.append((name, world, 1e3 * sync, 1e3 * reduce, 1e3 * (small + targets + statistics)))
    return rows


def write(path, rows, told, wide):
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "")
    lines = [
        f"# Step time on more ranks, {datetime.date.today()}",
        "",
        f"`make scale-out` (`bench/scale_out.py --turns {a.turns}`); {os.cpu_count()} cores, {model}. The model is at the head of that file.",
        "",
        "## Checked here",
        "Ranks of one machine over Gloo, statistics over all lanes, mode exact. Compute: as many processes that do not talk (with more",
        "ranks than cores they share them). The costs of a gather and of the all-reduce are measured alone, ranks idle otherwise.",
        "",
        "| step | ranks | gathers | ms a gather | ms all-reduce | compute, s | predicted, s | seen, s (from, to) | predicted over seen |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, world, gathers, t, compute, predicted, seen, ratio in rows:
        lines.append(
            f"| {name} | {world} | {gathers} | {1e3 * t['small_gather_s']:.2f} | {1e3 * t['gradient_reduce_s']:.0f} | {compute:.3f} |"
            f" {predicted:.3f} | {seen[0]:.3f} ({seen[1]:.3f} to {seen[2]:.3f}) | {ratio:.2f} |"
        )
    lines += [
        "",
        "## Beyond",
        f"A R50 step of the paper's model says {told['gradient_bytes'] / 1e6:.0f} MB of gradients and has {told['norms_forward']} gathers of statistics"
        f" forward and {told['norms_backward']} backward (counted, mode exact). Ring",
        "collectives on links that are **assumed, not measured**; milliseconds a step. No compute time is given: no GPU was there to",
        "measure it. The all-reduce hides behind the backward pass where that is longer; gathers of statistics never do.",
        "",
        "| link (latency, bandwidth) | ranks | all but gradients, `norm = \"sync\"` | the same, `norm = \"lane\"` | gradients |",
        "|---|---|---|---|---|",
    ]
    for name, world, sync, reduce, lane in wide:
        lines.append(f"| {name} | {world} | {sync:.1f} | {lane:.2f} | {reduce:.1f} |")
    lines += [
        "",
        "So it is latency of the many small gathers, not bandwidth, that ends scaling with synchronised norms; both sides' statistics",
        "travel in one gather already. `norm = \"lane\"` has none of them (it averages running statistics once a step).",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    print(f"written to {path}")


def main():
    rows = check()
    told = parts(1, ["--depth", "50", "--image-size", "64", "--images", "2"])
    write(a.out or ROOT / f"docs/results/scale-out-cpu-{os.cpu_count()}-cores.md", rows, told, beyond(told))


if __name__ == "__main__":
    main()
