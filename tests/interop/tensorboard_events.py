"""Reads a run's event files with TensorBoard's own reader and compares them with `metrics.jsonl`.

Every committed step is there once with the right values, steps that were rolled back are not, and the sheets of montages
are pictures. `scripts/interop.sh` calls it, after a run that went back. A difference fails the whole.
"""
import io
import json
import struct
import sys
from pathlib import Path

from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

EVERYTHING = {"scalars": 0, "images": 0}


def single(value):
    """As single precision has it, which is what the files hold."""
    return struct.unpack("f", struct.pack("f", value))[0]


def expected(rows):
    """By tag the values of every step, as (step, value)."""
    tags = {}
    for row in rows:
        values = {name: row[name] for name in (
            "loss", "lr", "momentum", "grad_norm", "images_per_s", "data_wait_s", "step_s", "workers")}
        values.update({f"loss/level_{n}": loss for n, loss in enumerate(row["loss_per_level"])})
        for tag, value in values.items():
            if value is not None:
                tags.setdefault(tag, []).append((row["step"], single(value)))
    return tags


def main():
    run = Path(sys.argv[1])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    gone = run / "metrics.rolled_back.jsonl"
    rolled_back = len(gone.read_text().splitlines()) if gone.exists() else 0
    reader = EventAccumulator(str(run / "events"), size_guidance=EVERYTHING)
    reader.Reload()
    differences = []
    tags = expected(rows)
    found = set(reader.Tags()["scalars"])
    if found != set(tags):
        differences.append(f"tags {sorted(found)}, expected {sorted(tags)}")
    for tag in sorted(found & set(tags)):
        values = [(event.step, event.value) for event in reader.Scalars(tag)]
        if values != tags[tag]:
            wrong = next((pair for pair in zip(values, tags[tag]) if pair[0] != pair[1]), None)
            differences.append(f"{tag}: {len(values)} values, expected {len(tags[tag])}; first difference {wrong}")
    times = [event.wall_time for event in reader.Scalars("lr")]
    if times != [row["time"] for row in rows]:
        differences.append("steps were not committed when the files say")
    sheets = reader.Images("montages")
    for sheet in sheets:
        picture = Image.open(io.BytesIO(sheet.encoded_image_string))
        picture.load()
        if picture.size != (sheet.width, sheet.height):
            differences.append(f"the sheet of step {sheet.step} is {picture.size}, it says {sheet.width, sheet.height}")
    steps = [sheet.step for sheet in sheets]
    if len(set(steps)) != len(steps) or not steps or steps[0] != 0:
        differences.append(f"sheets of steps {steps}: expected each once, and that of step 0")
    if not rolled_back:
        differences.append("nothing was rolled back: the run was to be killed between two checkpoints")
    print(f"TensorBoard: {len(rows)} steps, {len(tags)} tags, sheets of steps {steps}, {rolled_back} steps rolled back")
    for difference in differences:
        print(f"  DIFFERS: {difference}")
    sys.exit(1 if differences else 0)


if __name__ == "__main__":
    main()
