"""COCO-format data: a file of annotations and a folder of images become tensors.

What a step is fed is a pure function of (seed, step): there is no sampler whose state would have to be saved. Category
ids may have gaps; labels are 1..C in the order of ids, 0 is background. Left out of training, as in Detectron2: crowd
annotations, boxes of less than a pixel within the image, and images without any other box. Evaluation uses all.
"""
import hashlib
import json
from pathlib import Path

import numpy
import torch
from PIL import Image
from pycocotools import mask as rle

from errors import UserError

# Side of the smallest box that is trained on, in pixels of the original image.
SMALLEST = 1.0
NEEDED = {"images": ("id", "file_name", "width", "height"), "annotations": ("id", "image_id", "category_id", "bbox"),
          "categories": ("id", "name")}


def stream(seed, *purpose):
    """A seed of its own for each purpose: 0..2^63."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def batch(seed, step, size, count):
    """Which of `count` samples the step takes, and which of them are flipped: [(index, flip)] x size.

    Epochs follow each other without a gap, each in a random order of its own."""
    orders, picks = {}, []
    flips = torch.rand(size, generator=torch.Generator().manual_seed(stream(seed, "flip", step)))
    for slot in range(size):
        epoch, position = divmod(step * size + slot, count)
        if epoch not in orders:
            generator = torch.Generator().manual_seed(stream(seed, "order", epoch))
            orders[epoch] = torch.randperm(count, generator=generator).tolist()
        picks.append((orders[epoch][position], bool(flips[slot] < 0.5)))
    return picks


class Coco:
    """One file of annotations with its images, checked.

    `content` is the file as pycocotools wants it, `labels` maps category ids to 1..C, `trained` has what training
    sees: [(image, its annotations)]."""

    def __init__(self, annotations, images, masks=False, class_agnostic=False):
        self.folder = Path(images)
        self.content = read(Path(annotations))
        self.masks = masks
        if class_agnostic:
            self.content["categories"] = [{"id": 1, "name": "object"}]
            self.content["annotations"] = [{**a, "category_id": 1} for a in self.content["annotations"]]
        self.labels = {id_: label for label, id_ in enumerate(sorted(c["id"] for c in self.content["categories"]), 1)}
        self.images = sorted(self.content["images"], key=lambda image: image["id"])
        self._check(annotations)
        by_image, self.left_out = {}, {"crowd": 0, "tiny": 0, "images": 0}
        for annotation in self.content["annotations"]:
            by_image.setdefault(annotation["image_id"], []).append(annotation)
        self.trained = []
        for image in self.images:
            kept = [a for a in by_image.get(image["id"], []) if self._trains(a, image)]
            self.left_out["images"] += not kept
            if kept:
                self.trained.append((image, kept))

    def _trains(self, annotation, image):
        reason = "crowd" if annotation["iscrowd"] else "tiny" if clipped(annotation, image) is None else None
        if reason:
            self.left_out[reason] += 1
        return reason is None

    def _check(self, file):
        if not self.folder.is_dir():
            raise UserError(f"there is no folder {self.folder}, where the images of {file} should lie")
        missing = [i["file_name"] for i in self.images if not (self.folder / i["file_name"]).is_file()]
        if missing:
            raise UserError(f"{len(missing)} of {len(self.images)} images of {file} are not in {self.folder}, such as "
                            f"{missing[0]}: name the folder that file_name is relative to")
        sizes = {image["id"]: (image["height"], image["width"]) for image in self.images}
        for a in self.content["annotations"]:
            where = f"annotation {a['id']} of {file}"
            if a["image_id"] not in sizes:
                raise UserError(f"{where} is of image {a['image_id']}, which the file does not list")
            if a["category_id"] not in self.labels:
                raise UserError(f"{where} is of category {a['category_id']}, which the file does not list")
            if len(a["bbox"]) != 4:
                raise UserError(f"{where} has a bbox of {len(a['bbox'])} numbers, expected [x, y, width, height]")
            if self.masks and not a.get("segmentation"):
                raise UserError(f"{where} has no segmentation, which Mask R-CNN learns from: use --detector faster")
            a.setdefault("iscrowd", 0)
            a.setdefault("area", a["bbox"][2] * a["bbox"][3])

    def picture(self, image):
        """[3, H, W], RGB, 0..1."""
        path = self.folder / image["file_name"]
        try:
            with Image.open(path) as opened:
                pixels = numpy.array(opened.convert("RGB"))
        except OSError as error:
            raise UserError(f"{path} cannot be read as an image ({error}): replace it or leave it out of the "
                            "annotations") from error
        found, said = pixels.shape[1::-1], (image["width"], image["height"])
        if found != said:
            raise UserError(f"{path} is {found[0]}x{found[1]} pixels, its annotations say {said[0]}x{said[1]}: boxes "
                            "would be at wrong places")
        return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255

    def sample(self, index, flip):
        """An image [3, H, W] and its target: boxes [N, 4] (x1, y1, x2, y2 in pixels), labels [N], masks [N, H, W]."""
        image, annotations = self.trained[index]
        picture = self.picture(image)
        boxes = torch.tensor([clipped(a, image) for a in annotations], dtype=torch.float32)
        target = {"labels": torch.tensor([self.labels[a["category_id"]] for a in annotations])}
        if self.masks:
            target["masks"] = torch.from_numpy(numpy.stack([rle.decode(encoded(a, image)) for a in annotations]))
        if flip:
            picture = picture.flip(2)
            boxes[:, [0, 2]] = image["width"] - boxes[:, [2, 0]]
            if self.masks:
                target["masks"] = target["masks"].flip(2)
        return picture, {"boxes": boxes, **target}


def read(file):
    """The file's content, with everything there that is needed of it."""
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"there is no file {file}: annotations are one JSON file in COCO's format") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as JSON ({error})") from error
    for section, keys in NEEDED.items():
        rows = content.get(section) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise UserError(f"{file} has no list \"{section}\", as COCO's instances_*.json do")
        for number, row in enumerate(rows):
            lacking = [key for key in keys if not isinstance(row, dict) or key not in row]
            if lacking:
                raise UserError(f"entry {number} of \"{section}\" in {file} has no \"{lacking[0]}\"")
    for section in ("images", "categories"):
        if not content[section]:
            raise UserError(f"{file} lists no {section}")
    return content


def clipped(annotation, image):
    """The box within the image as (x1, y1, x2, y2), or nothing where less than a pixel is left of it."""
    x, y, width, height = annotation["bbox"]
    x1, y1 = max(x, 0), max(y, 0)
    x2, y2 = min(x + width, image["width"]), min(y + height, image["height"])
    return (x1, y1, x2, y2) if x2 - x1 >= SMALLEST and y2 - y1 >= SMALLEST else None


def encoded(annotation, image):
    """The mask as compressed RLE, from polygons or either kind of RLE."""
    shape = annotation["segmentation"]
    height, width = image["height"], image["width"]
    try:
        if isinstance(shape, list):
            return rle.merge(rle.frPyObjects(shape, height, width))
        if isinstance(shape["counts"], list):
            shape = rle.frPyObjects(shape, height, width)
        if list(shape["size"]) != [height, width]:
            raise ValueError(f"it is {shape['size']}, the image {[height, width]}, height first")
        return shape
    except Exception as error:  # pycocotools raises what it likes
        raise UserError(f"the segmentation of annotation {annotation['id']} cannot be read ({error})") from error
