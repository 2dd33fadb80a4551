#!/usr/bin/env python3
"""Writes what Pillow makes of small pictures, for the bit-equality tests of this crate.

    pip install pillow numpy && python3 make.py

Only Pillow is needed: the few torchvision calls of the official recipe are restated here as they act
on PIL pictures. Results: stages.json + stages.bin (inputs and outputs, interleaved RGB), decoded.json
(FNV-1a of what Pillow decodes from ../odd-inputs).
"""
import json
import os
import zlib

import numpy as np
import PIL
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

HERE = os.path.dirname(os.path.abspath(__file__))
blob = bytearray()


def put(img):
    a = np.asarray(img.convert("RGB"), np.uint8)
    at = len(blob)
    blob.extend(a.tobytes())
    return {"width": a.shape[1], "height": a.shape[0], "at": at}


def scene(width, height, seed):
    """Soft gradients, hard edges and noise, with grey, black, white and saturated patches."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(float)
    a = np.stack([127 + 120 * np.sin(x / 5 + c) * np.cos(y / 7 - 2 * c) for c in range(3)], -1)
    a += rng.normal(0, 12, a.shape)
    a = np.clip(a, 0, 255).astype(np.uint8)
    patches = [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128), (255, 255, 0), (1, 2, 1)]
    for i, rgb in enumerate(patches):
        x0 = (i * width) // len(patches)
        a[: max(1, height // 6), x0 : x0 + max(1, width // 12)] = rgb
    return Image.fromarray(a)


def noise(width, height, seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def hue(img, factor):
    """torchvision adjust_hue on a PIL picture."""
    h, s, v = img.convert("HSV").split()
    a = np.array(h, dtype=np.uint8)
    a += np.int32(factor * 255).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(a), s, v)).convert("RGB")


def grey(img):
    a = np.array(img.convert("L"), dtype=np.uint8)
    return Image.fromarray(np.dstack([a, a, a]))


STAGES = {
    "brightness": (lambda i, p: ImageEnhance.Brightness(i).enhance(p), [0.0, 0.6, 0.99, 1.0, 1.4, 2.3]),
    "contrast": (lambda i, p: ImageEnhance.Contrast(i).enhance(p), [0.0, 0.6, 0.99, 1.0, 1.4, 2.3]),
    "saturation": (lambda i, p: ImageEnhance.Color(i).enhance(p), [0.0, 0.8, 1.0, 1.2, 2.3]),
    "hue": (hue, [-0.5, -0.1, -0.003, 0.0, 0.005, 0.1, 0.37, 0.5]),
    "grey": (lambda i, p: grey(i), [0.0]),
    "solarize": (lambda i, p: ImageOps.solarize(i, 128), [0.0]),
    "invert": (lambda i, p: ImageOps.invert(i), [0.0]),
    "blur": (
        lambda i, p: i.filter(ImageFilter.GaussianBlur(radius=p)),
        [0.0, 0.1, 0.25, 0.5, 0.8, 1.0, 1.2, 1.414, 1.7, 1.999, 2.0, 3.3, 10.0],
    ),
}

INPUTS = [scene(61, 43, 1), noise(33, 17, 2), noise(1, 1, 3), noise(1, 9, 4), noise(7, 1, 5), noise(2, 3, 6), noise(5, 5, 7)]
# Crop (left, top, width, height) and target size of the resize test, on one larger scene.
CROPS = [
    ((0, 0, 150, 113), (48, 48)), ((13, 7, 90, 80), (33, 33)), ((100, 50, 20, 25), (48, 48)),
    ((149, 112, 1, 1), (16, 16)), ((0, 10, 150, 3), (32, 32)), ((40, 0, 2, 113), (28, 28)),
    ((20, 20, 48, 48), (48, 48)), ((5, 9, 140, 100), (7, 7)), ((60, 30, 48, 80), (48, 20)), ((3, 3, 97, 89), (1, 1)),
]


def fnv1a(data):
    h = 0xCBF29CE484222325
    for b in data:
        h = ((h ^ b) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{h:016x}"


def main():
    stages = []
    for img in INPUTS:
        source = put(img)
        for name, (call, parameters) in STAGES.items():
            for p in parameters:
                out = call(img, p)
                stages.append({"stage": name, "parameter": p, "input": source, "output": put(out)})
    resizes = []
    for large in (scene(150, 113, 8), noise(150, 113, 9)):
        source = put(large)
        for (left, top, w, h), size in CROPS:
            out = large.crop((left, top, left + w, top + h)).resize(size, Image.BILINEAR)
            resizes.append({"crop": [left, top, w, h], "input": source, "output": put(out)})
    decoded = {}
    odd = os.path.join(HERE, "..", "odd-inputs")
    for name in sorted(os.listdir(odd)):
        if name == "manifest.json":
            continue
        try:
            with Image.open(os.path.join(odd, name)) as img:
                rgb = img.convert("RGB")
            decoded[name] = {"size": list(rgb.size), "fnv1a": fnv1a(rgb.tobytes())}
        except Exception as e:  # what Pillow refuses is part of the record
            decoded[name] = {"refused": type(e).__name__}
    about = {"pillow": PIL.__version__, "bytes": len(blob), "crc32": zlib.crc32(bytes(blob))}
    with open(os.path.join(HERE, "stages.bin"), "wb") as f:
        f.write(blob)
    with open(os.path.join(HERE, "stages.json"), "w") as f:
        json.dump({"about": about, "stages": stages, "resizes": resizes}, f, indent=0)
        f.write("\n")
    with open(os.path.join(HERE, "decoded.json"), "w") as f:
        json.dump({"pillow": PIL.__version__, "files": decoded}, f, indent=1)
        f.write("\n")
    print(about, len(stages), "stages", len(resizes), "resizes", len(decoded), "pictures")


if __name__ == "__main__":
    main()
