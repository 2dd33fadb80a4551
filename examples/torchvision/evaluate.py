"""COCO's average precision, as pycocotools computes it, of a detector's boxes and masks.

All numbers are fractions, 0 to 1. "AP" is the mean over intersections over union of 0.5 to 0.95 and over categories;
"APs", "APm", "APl" are of objects below 32^2, up to 96^2 and above, in pixels of the original image, and None where the
data has none. At most 100 detections an image count.
"""
import contextlib
import io

import numpy
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data import encoded

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def evaluate(model, data, device, limit=0):
    """AP of boxes, and under "mask" that of masks, on all images or the first `limit` by id."""
    images = data.images[:limit or None]
    boxes, masks = detect(model, data, images, device)
    scores = score(data, images, boxes, "bbox")
    if data.masks:
        scores["mask"] = score(data, images, masks, "segm")
    return scores


@torch.no_grad()
def detect(model, data, images, device):
    """What the model finds, as COCO's lists of results. One image at a time: none is padded to another's size."""
    model.eval()
    categories = {label: id_ for id_, label in data.labels.items()}
    boxes, masks = [], []
    for image in images:
        found = {name: value.cpu() for name, value in model([data.picture(image).to(device)])[0].items()}
        for n, (x1, y1, x2, y2) in enumerate(found["boxes"].tolist()):
            about = {"image_id": image["id"], "category_id": categories[int(found["labels"][n])],
                     "score": float(found["scores"][n])}
            boxes.append({**about, "bbox": [x1, y1, x2 - x1, y2 - y1]})
            if data.masks:
                inside = numpy.asfortranarray((found["masks"][n, 0] > 0.5).numpy().astype(numpy.uint8))
                masks.append({**about, "segmentation": rle.encode(inside)})
    model.train()
    return boxes, masks


def score(data, images, results, kind):
    """The six numbers for results with "bbox", or with "segmentation" where `kind` is "segm"."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        # Numbered anew: to pycocotools an annotation of id 0 is none.
        annotations = [{**a, "id": n} for n, a in enumerate(data.content["annotations"], 1)]
        if kind == "segm":
            by_id = {image["id"]: image for image in data.images}
            annotations = [{**a, "segmentation": encoded(a, by_id[a["image_id"]])} for a in annotations]
        truth.dataset = {**data.content, "annotations": annotations}
        truth.createIndex()
        rows = []
        for n, result in enumerate(results, 1):
            area = float(rle.area(result["segmentation"])) if kind == "segm" else result["bbox"][2] * result["bbox"][3]
            rows.append({**result, "id": n, "area": area, "iscrowd": 0})
        found.dataset = {**data.content, "annotations": rows}
        found.createIndex()
        judge = COCOeval(truth, found, kind)
        judge.params.imgIds = [image["id"] for image in images]
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    # pycocotools says -1 where there is nothing to find.
    return {name: float(value) if value >= 0 else None for name, value in zip(NAMES, judge.stats)}
