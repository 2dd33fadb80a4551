"""The official picture pipeline in PIL and torchvision, one thread: a turn of pictures for each line on standard input,
each answered by a JSON line with its wall and CPU time a picture."""

import argparse
import glob
import io
import json
import random
import sys
import time

import numpy as np
import torch
import torchvision.transforms as T
from PIL import Image, ImageFilter, ImageOps

parser = argparse.ArgumentParser()
parser.add_argument("pictures", help="folder")
parser.add_argument("--image-size", type=int, default=224)
parser.add_argument("--count", type=int, default=200, help="pictures of one turn")
a = parser.parse_args()
torch.set_num_threads(1)
random.seed(0)
torch.manual_seed(0)


class Blur:
    def __init__(self, p):
        self.p = p

    def __call__(self, picture):
        if random.random() >= self.p:
            return picture
        return picture.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


class Solarize:
    def __init__(self, p):
        self.p = p

    def __call__(self, picture):
        return ImageOps.solarize(picture, 128) if random.random() < self.p else picture


def pipeline(blur, solarize):
    return T.Compose(
        [
            T.RandomResizedCrop(a.image_size, scale=(0.2, 1.0), interpolation=T.InterpolationMode.BILINEAR),
            T.RandomHorizontalFlip(0.5),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            T.RandomGrayscale(0.2),
            Blur(blur),
            Solarize(solarize),
            lambda picture: torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous(),
        ]
    )


SIDES = (pipeline(1.0, 0.0), pipeline(0.1, 0.2))


def views(path):
    with open(path, "rb") as file:
        picture = Image.open(io.BytesIO(file.read())).convert("RGB")
    return [side(picture) for side in SIDES for _ in range(4)]


files = sorted(glob.glob(f"{a.pictures}/**/*.jp*g", recursive=True))
if not files:
    sys.exit(f"no JPEG under {a.pictures}")
at = 0


def turn(count):
    global at
    for _ in range(count):
        views(files[at % len(files)])
        at += 1


turn(min(10, a.count))
print(json.dumps({"ready": True, "pictures": len(files)}), flush=True)
while sys.stdin.readline():
    wall, cpu = time.perf_counter(), time.process_time()
    turn(a.count)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(json.dumps({"wall_s": wall / a.count, "cpu_s": cpu / a.count}), flush=True)
