"""Measures mcl beside its peers, by turns on one machine, and writes ratios with their spread; `make bench` calls it.

Both programs are started, warmed up and then take single turns: ours, peer, ours, peer. A pair's ratio is the peer's cost
over ours; the figure is the median of the pairs. Nothing else should run on the machine.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from programs import Program, free_port, spread

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# Multiply-adds of one official step at 96 pixels and 16 pictures, in 1e9: the method's own cost table.
OFFICIAL_GMAC = {50: 558.0, 18: 475.2}
STEP = ["--image-size", "96", "--images", "16"]

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--binaries", type=Path, default=ROOT / "target/release")
parser.add_argument("--out", type=Path, help="Markdown file; default docs/results/bench-<host kind>.md")
parser.add_argument("--pairs", type=int, default=7)
parser.add_argument("--only", help="comma-separated: loader, step, ranks, run; default all")
a = parser.parse_args()


def ours(*arguments):
    return [a.binaries / "mcl", "bench", *arguments, "--paced"]


def peer(program, *arguments):
    return [sys.executable, HERE / "peers" / f"{program}.py", *arguments]


def side_by_side(name, unit, our_command, peer_command, measure="cpu_s", scale=1e3):
    """One row: costs of both and the pairs' ratios."""
    mine, theirs = Program(our_command).ready(), Program(peer_command).ready()
    pairs = [(mine.turn()[measure], theirs.turn()[measure]) for _ in range(a.pairs)]
    mine.end(), theirs.end()
    row = {
        "name": name,
        "unit": unit,
        "ours": spread([o * scale for o, _ in pairs]),
        "peer": spread([p * scale for _, p in pairs]),
        "ratio": spread([p / o for o, p in pairs]),
    }
    report(row)
    return row


def report(row):
    (m, low, high), ratio = row["ours"], row["ratio"] or (float("nan"),) * 3
    print(
        f"{row['name']:<58} ours {m:9.2f} ({low:.2f}-{high:.2f}) peer {row['peer'][0]:9.2f} {row['unit']:<14}"
        f" ratio {ratio[0]:6.2f} ({ratio[1]:.2f}-{ratio[2]:.2f})",
        flush=True,
    )


def loader(folder):
    pictures, small = folder / "pictures", folder / "pre-shrunk"
    mcl = a.binaries / "mcl"
    generate = ["data", "generate", "scenes", "--count", "400", "--size", "500x375", "--quality", "98", "--out", pictures]
    subprocess.run([mcl, *generate], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([mcl, "data", "pack", pictures, "--out", small, "--short-side", "256"], check=True, stdout=subprocess.DEVNULL)
    sizes = [file.stat().st_size for file in pictures.rglob("*.jpg")]
    print(f"loader: {len(sizes)} JPEGs of 500x375, {statistics.mean(sizes) / 1e3:.0f} kB on average")
    theirs = peer("loader", pictures, "--count", "40")
    rows = []
    for name, source, views in (
        ("loader, exact views", pictures, "exact"),
        ("loader, level views", pictures, "level"),
        ("loader, level views, pre-shrunk shards", small, "level"),
    ):
        mine = ours("loader", source, "--views", views, "--count", "200")
        rows.append(side_by_side(f"{name} against PIL + torchvision", "ms a picture", mine, theirs))
    return rows


def check_peer(depth):
    """The peer does the whole official graph: its multiply-adds are those of the method's cost table."""
    out = subprocess.run(peer("step", "--flops", "--depth", str(depth), *STEP), check=True, capture_output=True, text=True)
    found = json.loads(out.stdout)["gmac"]
    if abs(found / OFFICIAL_GMAC[depth] - 1) > 0.01:
        sys.exit(f"the peer's R{depth} step has {found:.1f} GMAC, expected {OFFICIAL_GMAC[depth]}")


def steps(_folder):
    rows = []
    for depth in (18, 50):
        check_peer(depth)
        for compute in ("official", "exact", "selective"):
            size = ["--depth", str(depth), *STEP]
            mine = ours("step", *size, "--compute", compute)
            rows.append(side_by_side(f"R{depth} step, {compute}, against eager official graph", "ms CPU", mine, peer("step", *size)))
    size = ["--depth", "50", *STEP, "--bf16"]
    mine, theirs = ours("step", *size, "--compute", "selective"), peer("step", *size, "--channels-last")
    rows.append(side_by_side("R50 step, selective, bf16, against eager official graph in bf16, channels last", "ms CPU", mine, theirs))
    return rows


class Talk:
    """What talking costs: turns of two processes that do not talk, and of two ranks that do; a core each."""

    def __init__(self, alone, together):
        self.pair = [Program(alone, core) for core in range(2)]
        port = free_port()
        self.ranks = [Program(together(rank, port), rank) for rank in range(2)]
        for program in (*self.pair, self.ranks[0]):
            program.ready()
        self.shares = []

    def turn(self):
        """Adds what the ranks' step took longer, in percent of the step of those that do not talk."""
        for program in self.pair:
            program.go()
        single = statistics.mean(program.answer()["wall_s"] for program in self.pair)
        self.shares.append(100 * (self.ranks[0].turn()["wall_s"] / single - 1))

    def end(self):
        for program in (*self.pair, *self.ranks):
            program.end()


def two_ranks(_folder):
    """Both with norms that synchronise, as in the paper, and both with norms that do not."""
    size = ["--depth", "18", *STEP]
    rank = lambda rank: ["--rank", str(rank), "--world", "2"]
    rows = []
    for norms, our_norms, their_norms in (("synchronised", [], ["--sync-norms"]), ("local", ["--lane-norm"], [])):
        theirs = Talk(
            peer("step", *size),
            lambda r, port: peer("step", *size, *their_norms, *rank(r), "--store", f"127.0.0.1:{port}"),
        )
        mine = {}
        for compute in ("exact", "selective"):
            chosen = [*size, "--compute", compute]
            mine[compute] = Talk(
                ours("step", *chosen), lambda r, port: ours("step", *chosen, *our_norms, *rank(r), "--port", port)
            )
        for _ in range(a.pairs):
            for talk in (*mine.values(), theirs):
                talk.turn()
        for talk in (*mine.values(), theirs):
            talk.end()
        other = spread(theirs.shares)
        for compute, talk in mine.items():
            own = spread(talk.shares)
            row = {
                "name": f"what talking costs two ranks, R18, {compute}, {norms} norms, over what it costs DDP over Gloo with {norms} norms",
                "unit": "% of a step",
                "ours": own,
                "peer": other,
                # Ours, with its spread, over the peer's median: here less is better. A pair's own would be a difference
                # over a difference.
                # No number where the peer's is not told from none.
                "ratio": tuple(share / other[0] for share in own) if other[1] > 0 else None,
            }
            report(row)
            rows.append(row)
    return rows


JOB = """
[data]
source = "{pictures}"
views = "level"
[model]
depth = 18
width = 16
image_size = 64
fpn_channels = 64
projector_convs = 1
projector_hidden = 256
embedding = 64
predictor_hidden = 256
[method]
compute = "selective"
levels = [1, 2, 4]
level_weights = [0.5, 0.25, 0.25]
[batch]
images_per_lane = 8
[train]
steps = {steps}
[optimizer]
lr = 0.5
warmup_steps = 10
"""


def rank_below(pid):
    """The rank process among the descendants of a process."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, rest = stat.read_text().rsplit(")", 1)
        except OSError:
            continue
        parents.setdefault(int(rest.split()[1]), []).append((int(head.split(" ", 1)[0]), head.split("(", 1)[1]))
    found = list(parents.get(pid, []))
    for child, name in found:
        if name == "mcl-rank":
            return child
        found += parents.get(child, [])
    sys.exit("no rank process runs")


def resident(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def rank_memory(run, steps):
    """Resident bytes of the rank process when the given steps are committed, and when the first one was."""
    found, first, begun = {}, None, time.monotonic()
    while first is None or len(found) < len(steps):
        if run.poll() is not None:
            sys.exit(f"mcl run ended with {run.returncode}: {run.stderr.read()}")
        metrics = run.folder / "metrics.jsonl"
        done = sum(1 for _ in metrics.open()) if metrics.exists() else 0
        if done and first is None:
            first = time.monotonic() - begun
        for step in steps:
            if done >= step and step not in found:
                found[step] = resident(rank_below(run.pid))
        time.sleep(0.01)
    return first, found


def run(folder):
    mcl = a.binaries / "mcl"
    subprocess.run([mcl, "data", "generate", "objects", "--count", "256", "--out", folder / "objects"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([mcl, "data", "pack", folder / "objects", "--out", folder / "shards"], check=True, stdout=subprocess.DEVNULL)
    rows, firsts = [], []
    for turn in range(3):
        job = folder / f"job-{turn}.toml"
        job.write_text(JOB.format(pictures=folder / "shards", steps=1002 if turn == 0 else 3))
        command = [mcl, "run", job, "--workers", "1", "--run-dir", folder / f"run-{turn}"]
        process = subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)
        process.folder = folder / f"run-{turn}"
        first, memory = rank_memory(process, [50, 1000] if turn == 0 else [])
        firsts.append(first)
        if turn == 0:
            rows.append(("memory of a rank, 1,000 steps over 50", f"{memory[1000] / memory[50]:.3f} ({memory[50] / 1e6:.0f} -> {memory[1000] / 1e6:.0f} MB)"))
        process.wait(timeout=120)
    rows.insert(0, ("first step committed after `mcl run`, R18 at 64 px", "{:.2f} s ({:.2f} to {:.2f})".format(*spread(firsts))))
    for name, value in rows:
        print(f"{name:<58} {value}")
    return rows


def write(path, sections, plain):
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.machine())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    import torch, torchvision, PIL

    lines = [
        f"# mcl beside its peers, {datetime.date.today()}",
        "",
        f"`make bench` (`bench/compare.py --pairs {a.pairs}`), commit {commit}; {os.cpu_count()} cores, {model}; load before it",
        f"{os.getloadavg()[2]:.1f}. Peers (`bench/peers/`): PyTorch {torch.__version__}, torchvision {torchvision.__version__}, Pillow {PIL.__version__}.",
        f"By turns in one run, {a.pairs} pairs; median (from to). Ratio: the peer's cost over ours, of each pair; of what talking",
        "costs, ours over the peer's median. Ours is started with its allocator settings, as `mcl` starts it; the peers as Python",
        "starts them.",
        "",
        "| figure | unit | ours | peer | ratio |",
        "|---|---|---|---|---|",
    ]
    cell = lambda s: f"{s[0]:.2f} ({s[1]:.2f} to {s[2]:.2f})" if s else "peer's includes 0"
    for row in sections:
        lines.append(f"| {row['name']} | {row['unit']} | {cell(row['ours'])} | {cell(row['peer'])} | {cell(row['ratio'])} |")
    if plain:
        lines += ["", "| figure | |", "|---|---|", *(f"| {name} | {value} |" for name, value in plain)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    print(f"written to {path}")


def main():
    wanted = (a.only or "loader,step,ranks,run").split(",")
    work = Path(tempfile.mkdtemp(prefix="mcl-bench-"))
    sections, plain = [], []
    try:
        for name, measure in (("loader", loader), ("step", steps), ("ranks", two_ranks)):
            if name in wanted:
                sections += measure(work)
        if "run" in wanted:
            plain = run(work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    kind = f"cpu-{os.cpu_count()}-cores"
    write(a.out or ROOT / f"docs/results/bench-{kind}.md", sections, plain)


if __name__ == "__main__":
    main()
