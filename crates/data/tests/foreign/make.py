"""Small sources as other tools write them, for tests/foreign.rs.

    pip install datasets==5.2.0 webdataset==1.0.2 pillow==13.0.0 pyarrow==26.0.1 blake3
    python make.py FOLDER

The pictures are drawn here. `expected.json` says what each source holds: for every picture its class and the hash of its
bytes, in order. Times and names of machines do not enter.
"""

import io
import json
import sys
import tarfile
from pathlib import Path

import blake3
import pyarrow.parquet
import webdataset
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Pillow
from PIL import ImageDraw

CLASSES = ["cat", "dog", "owl"]


def picture(number):
    """A small picture: every third is a PNG."""
    drawn = Pillow.new("RGB", (24 + number, 20), (number * 20 % 256, 90, 160))
    ImageDraw.Draw(drawn).ellipse((3, 3, 15, 15), fill=(250, number * 9 % 256, 30))
    out, form = io.BytesIO(), ("PNG" if number % 3 == 2 else "JPEG")
    drawn.save(out, form)
    return out.getvalue(), ("png" if form == "PNG" else "jpg")


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [(*picture(number), number % len(CLASSES)) for number in range(10)]
    expected = [[label, blake3.blake3(content).hexdigest()] for content, _, label in pictures]

    # WebDataset's own writer: two shards, several files a sample.
    pattern = str(folder / "wds-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=6, mtime=0, user="u", group="g", verbose=0) as sink:
        for number, (content, ending, label) in enumerate(pictures):
            note = {"caption": f"number {number}", "label": label}
            sink.write({"__key__": f"sample/{number:04}", ending: content, "cls": label, "json": note})

    # What `datasets` writes with to_parquet, row groups of four.
    features = Features({"image": Image(), "label": ClassLabel(names=CLASSES), "caption": Value("string")})
    rows = {
        "image": [{"bytes": c, "path": f"{n:04}.{e}"} for n, (c, e, _) in enumerate(pictures)],
        "label": [label for _, _, label in pictures],
        "caption": [f"number {n}" for n in range(len(pictures))],
    }
    dataset = Dataset.from_dict(rows, features=features)
    dataset.select(range(6)).to_parquet(folder / "train-00000-of-00002.parquet", batch_size=4)
    dataset.select(range(6, 10)).to_parquet(folder / "train-00001-of-00002.parquet", batch_size=4)

    # Other writers: zstd, small pages of the second version, rows without a picture.
    table = pyarrow.parquet.read_table(folder / "train-00000-of-00002.parquet")
    pages = {"data_page_size": 500, "data_page_version": "2.0", "write_batch_size": 1}
    pyarrow.parquet.write_table(table, folder / "zstd.parquet", compression="zstd", **pages)
    three = {
        "image": [rows["image"][0], None, {"bytes": None, "path": "elsewhere.jpg"}],
        "label": [0, None, 2],
        "caption": [None] * 3,
    }
    holes = pyarrow.Table.from_pydict(three, schema=table.schema)
    pyarrow.parquet.write_table(holes, folder / "holes.parquet", compression="snappy")

    # A plain tar of pictures in folders, as `tar -c` makes it (pax headers for long names).
    with tarfile.open(folder / "plain.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for number, (content, ending, label) in enumerate(pictures):
            long = "long-" * 30 if number == 3 else ""
            entry = tarfile.TarInfo(f"./{CLASSES[label]}/{long}picture.{number}.{ending}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))

    (folder / "expected.json").write_text(json.dumps({"classes": CLASSES, "pictures": expected}, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
