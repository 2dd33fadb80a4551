"""Fine-tunes a detector of torchvision on COCO-format data, beginning with an export of `mcl` or from scratch.

`OUT/last.pt` is all that a run needs to go on: the same command goes on where it was saved and ends with the numbers of
a run that was never interrupted (on a CPU; on a GPU some of torchvision's gradients are sums in no fixed order). Left
out: several devices, mixed precision, test-time augmentation.
"""
import argparse
import hashlib
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import torch

import model as models
from data import Coco, batch, stream
from errors import UserError
from evaluate import evaluate

# Detectron2's and the paper's: SGD, and steps down at 8 and 11 of 12 epochs.
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
DROPS, DROP = (8 / 12, 11 / 12), 0.1
WARMUP_START = 0.001
# What may differ when a run is continued: none of these decides what is computed.
FREE = {"out", "threads", "device", "save_every", "eval_every"}
# Seconds between two lines of progress.
PROGRESS = 10
INTERRUPTED = 130


def arguments(given=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--detector", choices=("faster", "mask"), required=True, help="Faster R-CNN, or Mask R-CNN")
    add("--depth", type=int, choices=sorted(models.BLOCKS), required=True, help="of the ResNet")
    add("--width", type=int, default=64, help="channels after the first convolution (64)")
    add("--fpn-channels", type=int, default=256, help="channels of the pyramid (256)")
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--weights", metavar="FILE.pth", help="export of --format torchvision-fpn, or torchvision")
    start.add_argument("--scratch", action="store_true", help="random weights")
    for side in ("train", "val"):
        add(f"--{side}-images", metavar="DIR", required=True)
        add(f"--{side}-annotations", metavar="JSON", required=True)
    add("--out", metavar="DIR", required=True, help="result.json, curve.jsonl, last.pt")
    add("--steps", type=int, required=True)
    add("--batch", type=int, default=4, help="images a step (4)")
    add("--lr", type=float, default=0.005, help="learning rate after the warm-up (0.005)")
    add("--warmup", type=int, default=100, help="steps of linear warm-up (100)")
    add("--size", type=int, default=800, help="shorter side of the input in pixels (800)")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=0, help="CPU threads, 0: torch's choice (0)")
    add("--eval-every", type=int, default=0, help="steps between evaluations, 0: at the end alone (0)")
    add("--save-every", type=int, default=100, help="steps between saves, 0: at the end alone (100)")
    add("--class-agnostic", action="store_true", help="all categories are one")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--limit-val", type=int, default=0, help="images to evaluate on, 0: all (0)")
    add("--norm", choices=sorted(models.NORMS), default="frozen", help="frozen statistics, or those of a batch (frozen)")
    args = parser.parse_args(given)
    for name, least in (("width", 1), ("fpn_channels", 1), ("steps", 1), ("batch", 1), ("size", 32), ("warmup", 0),
                        ("threads", 0), ("eval_every", 0), ("save_every", 0), ("limit_val", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name)}, expected at least {least}")
    if not (math.isfinite(args.lr) and args.lr > 0):
        parser.error(f"--lr is {args.lr}, expected a number above 0")
    # Other weights under the same name are another beginning.
    if args.weights and Path(args.weights).is_file():
        args.weights_sha256 = hashlib.sha256(Path(args.weights).read_bytes()).hexdigest()
    return args


def factor(step, steps, warmup):
    """What the learning rate is multiplied with in this step, counted from 0."""
    drops = DROP ** sum(step >= at * steps for at in DROPS)
    rise = min(1.0, step / warmup) if warmup else 1.0
    return drops * (WARMUP_START + (1 - WARMUP_START) * rise)


class Files:
    """What lies in --out. `curve` has a row for each step and each evaluation so far."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.result, self.state = self.folder / "result.json", self.folder / "last.pt"
        self._rows = self.folder / "curve.jsonl"
        self.curve = []

    def go_back(self, step):
        """Keeps the rows of the first `step` steps; a run that was killed may have written more, the last one in part."""
        for line in self._rows.read_text().splitlines() if self._rows.exists() else ():
            try:
                row = json.loads(line)
            except ValueError:
                break
            if row["step"] <= step:
                self.curve.append(row)
        whole(self._rows, "".join(json.dumps(row) + "\n" for row in self.curve).encode())

    def add(self, row):
        self.curve.append(row)
        with open(self._rows, "a", encoding="utf-8") as rows:
            rows.write(json.dumps(row) + "\n")

    def save(self, state):
        partial = self.state.with_suffix(".partial")
        torch.save(state, partial)
        replace(partial, self.state)


def whole(path, content):
    """The file has its old content or all of the new one, whenever the machine stops."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    replace(partial, path)


def replace(partial, path):
    with open(partial, "rb") as written:
        os.fsync(written.fileno())
    os.replace(partial, path)


class Run:
    """A fine-tuning that can be saved and continued between any two steps."""

    def __init__(self, args):
        self.args, self.step, self.seconds = args, 0, 0.0
        masks = args.detector == "mask"
        self.train = Coco(args.train_annotations, args.train_images, masks, args.class_agnostic)
        self.val = Coco(args.val_annotations, args.val_images, masks, args.class_agnostic)
        if self.train.labels != self.val.labels:
            odd = sorted(set(self.train.labels) ^ set(self.val.labels))
            raise UserError(f"{args.train_annotations} and {args.val_annotations} have different categories, such as id "
                            f"{odd[0]}: both have to list the same")
        if not self.train.trained:
            raise UserError(f"{args.train_annotations} has no image with a box to train on")
        # The same random heads for the same seed, whatever the backbone begins with.
        torch.manual_seed(stream(args.seed, "init"))
        self.model = models.build(args.detector, args.depth, args.width, args.fpn_channels, len(self.train.labels) + 1,
                                  args.size, args.norm)
        if args.weights:
            print(f"weights: {models.load(self.model.backbone, args.weights)}", flush=True)
        self.model.to(args.device).train()
        self.optimiser = torch.optim.SGD(self.model.parameters(), lr=args.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser, lambda step: factor(step, args.steps, args.warmup))
        torch.manual_seed(stream(args.seed, "train"))

    def state(self):
        cuda = torch.cuda.get_rng_state_all() if self.args.device == "cuda" else []
        return {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(),
                "schedule": self.schedule.state_dict(), "rng": torch.get_rng_state(), "cuda_rng": cuda,
                "step": self.step, "seconds": self.seconds, "arguments": vars(self.args)}

    def take(self, state):
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["rng"])
        if self.args.device == "cuda" and state["cuda_rng"]:
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        self.step, self.seconds = state["step"], state["seconds"]

    def advance(self):
        """One step; its row for the curve."""
        args, rate = self.args, self.schedule.get_last_lr()[0]
        samples = [self.train.sample(*pick) for pick in batch(args.seed, self.step, args.batch, len(self.train.trained))]
        pictures = [picture.to(args.device) for picture, _ in samples]
        targets = [{name: value.to(args.device) for name, value in target.items()} for _, target in samples]
        loss = sum(self.model(pictures, targets).values())
        if not torch.isfinite(loss):
            raise UserError(f"the loss of step {self.step + 1} is {loss.item()}: begin again in another --out with a lower "
                            f"--lr than {args.lr} or a longer --warmup than {args.warmup}"
                            + (", or with --norm batch" if args.scratch and args.norm == "frozen" else ""))
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.schedule.step()
        self.step += 1
        return {"step": self.step, "loss": loss.item(), "lr": rate}

    def evaluates(self, curve):
        """Whether this is a step to evaluate after, and that was not done yet."""
        every = self.args.eval_every
        due = self.step == self.args.steps or (every and self.step and self.step % every == 0)
        return due and not any("AP" in row and row["step"] == self.step for row in curve)

    def saves(self):
        every = self.args.save_every
        return self.step == self.args.steps or bool(every and self.step % every == 0)


class Stop:
    """Set by the first Ctrl-C or SIGTERM; a second one ends the program at once."""

    def __init__(self):
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number, _):
        self.asked = True
        signal.signal(number, signal.SIG_DFL)


def finetune(args):
    files, stop = Files(args.out), Stop()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch sees no CUDA device: use --device cpu")
    if args.threads:
        torch.set_num_threads(args.threads)
    saved = resumed(files, args)
    if saved and files.result.exists():
        print(files.result.read_text(), end="")
        return 0
    if args.scratch and args.norm == "frozen":
        print("warning: frozen norms of random weights normalise nothing; --norm batch learns better from scratch")
    run = Run(args)
    if saved:
        run.take(saved)
        print(f"going on after step {run.step} of {args.steps}")
    files.go_back(run.step)
    print(f"{len(run.train.trained)} images to train on, {len(run.val.images)} to evaluate on, {len(run.train.labels)} "
          f"categories; left out of training: {run.train.left_out['crowd']} crowd annotations, "
          f"{run.train.left_out['tiny']} boxes below a pixel, {run.train.left_out['images']} images without a box", flush=True)
    loop(run, files, stop)
    if run.step < args.steps:
        print(f"stopped after step {run.step} of {args.steps}; the same command goes on from there", file=sys.stderr)
        return INTERRUPTED
    last = files.curve[-1]
    result = {name: value for name, value in last.items() if name != "step"}
    result |= {"steps": args.steps, "seconds": round(run.seconds, 1), "seed": args.seed,
               "weights": Path(args.weights).name if args.weights else "scratch", "arguments": vars(args)}
    whole(files.result, (json.dumps(result, indent=2) + "\n").encode())
    print(files.result.read_text(), end="")
    return 0


def loop(run, files, stop):
    args, told = run.args, time.monotonic()
    before = told - run.seconds
    while True:
        if run.evaluates(files.curve):
            scores = evaluate(run.model, run.val, args.device, args.limit_val)
            run.seconds = time.monotonic() - before
            files.add({"step": run.step, **scores})
            print(f"step {run.step}: AP {scores['AP']}, AP50 {scores['AP50']}", flush=True)
        if run.step == args.steps or stop.asked:
            break
        row = run.advance()
        run.seconds = time.monotonic() - before
        files.add(row)
        if run.saves():
            files.save(run.state())
        if time.monotonic() - told >= PROGRESS:
            told = time.monotonic()
            print(f"step {run.step} of {args.steps}, loss {row['loss']:.3f}, {run.seconds:.0f} s", flush=True)
    if run.step < args.steps:
        files.save(run.state())


def resumed(files, args):
    """What an earlier run of the same arguments saved, if any."""
    if not files.state.exists():
        return None
    try:
        state = torch.load(files.state, map_location="cpu", weights_only=True)
        before = state["arguments"]
    except Exception as error:  # whatever it says, the file is not one of ours
        raise UserError(f"{files.state} cannot be read ({error}): remove it to begin anew") from error
    for name, value in vars(args).items():
        if name not in FREE and before.get(name) != value:
            raise UserError(f"{files.folder} was begun with {name} = {before.get(name)}, this command says {value}: give the "
                            "same, or another --out")
    return state


def main(given=None):
    try:
        return finetune(arguments(given))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: {error.filename or 'file'}: {error.strerror}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
