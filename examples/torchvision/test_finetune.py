"""Tests of the fine-tuning on a drawn data set: `python3 -m unittest discover -s examples/torchvision`.

[MCL_EXPORTS=folder] has `torchvision-fpn-online.pth` and `torchvision-online.pth` of a ResNet-50, which are loaded too.
"""
import contextlib
import io
import json
import os
import signal
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import numpy
import torch
import torchvision
from PIL import Image, ImageDraw
from pycocotools import mask as rle

import data
import evaluate
import finetune
import model as models

NAMES = Path(__file__).parent / "../../crates/export/tests/data/torchvision_resnet50_fpn.txt"
SIDES = (80, 64)
CATEGORIES = [{"id": 3, "name": "red"}, {"id": 7, "name": "blue"}]
# x, y, width, height
BOXES = [((6, 8, 30, 20), 3), ((44, 20, 24, 36), 7)]


def draw(folder, images=6):
    """Rectangles of two colours; masks as polygons, RLE and compressed RLE in turn. The last image is empty, the first
    has a crowd, a box of no width and one that leaves the image."""
    (folder / "images").mkdir(parents=True)
    content = {"images": [], "annotations": [], "categories": CATEGORIES}

    def annotate(image, box, category, crowd=0):
        x, y, w, h = box
        inside = numpy.zeros(SIDES[::-1], numpy.uint8, order="F")
        inside[y:y + h, x:x + w] = 1
        flat = numpy.concatenate([[0], inside.ravel(order="F"), [2]])
        ends = numpy.flatnonzero(numpy.diff(flat))
        counts = numpy.diff(numpy.concatenate([[0], ends[ends < inside.size], [inside.size]])).tolist()
        packed = rle.encode(inside)
        kinds = [[[x, y, x + w, y, x + w, y + h, x, y + h]], {"size": list(SIDES[::-1]), "counts": counts},
                 {"size": list(packed["size"]), "counts": packed["counts"].decode()}]
        number = len(content["annotations"])
        content["annotations"].append({
            "id": number, "image_id": image, "category_id": category, "bbox": list(box), "iscrowd": crowd,
            "area": w * h, "segmentation": kinds[1] if crowd else kinds[number % 3]})

    for number in range(images):
        picture = Image.new("RGB", SIDES, (200, 200, 190))
        if number < images - 1:
            for (x, y, w, h), category in BOXES:
                at = (x + number, y, w, h)
                colour = (190, 30, 30) if category == 3 else (20, 40, 180)
                ImageDraw.Draw(picture).rectangle((at[0], y, at[0] + w - 1, y + h - 1), colour)
                annotate(number + 10, at, category)
        picture.save(folder / "images" / f"{number}.png")
        content["images"].append({"id": number + 10, "file_name": f"{number}.png", "width": SIDES[0], "height": SIDES[1]})
    annotate(10, (0, 50, 40, 10), 3, crowd=1)
    annotate(10, (20, 20, 0, 5), 3)
    annotate(10, (70, 0, 20, 9), 7)
    (folder / "instances.json").write_text(json.dumps(content))


class Finetuning(unittest.TestCase):
    def setUp(self):
        held = tempfile.TemporaryDirectory()
        self.addCleanup(held.cleanup)
        self.folder = Path(held.name)
        draw(self.folder)

    def flags(self, out, **changed):
        images, annotations = str(self.folder / "images"), str(self.folder / "instances.json")
        flags = {"detector": "faster", "depth": 18, "width": 16, "fpn-channels": 16, "train-images": images,
                 "train-annotations": annotations, "val-images": images, "val-annotations": annotations,
                 "out": str(self.folder / out), "steps": 6, "batch": 2, "lr": 0.01, "warmup": 2, "size": 64, "threads": 1,
                 "eval-every": 3, "save-every": 2, "norm": "batch"} | changed
        start = [] if "weights" in flags else ["--scratch"]
        return [part for name, value in flags.items() for part in (f"--{name}", str(value))] + start

    def run_it(self, out, **changed):
        """Exit code and everything that was said."""
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = finetune.main(self.flags(out, **changed))
        return code, said.getvalue()

    def coco(self, **named):
        return data.Coco(self.folder / "instances.json", self.folder / "images", **named)

    def test_a_run_that_was_killed_while_it_saved_ends_with_the_same_numbers(self):
        class Killed(BaseException):
            pass

        self.assertEqual(self.run_it("straight")[0], 0)
        real, saves = finetune.replace, []

        def die_at_the_second_save(partial, path):
            saves.extend([1] if path.name == "last.pt" else [])
            if len(saves) == 2:
                raise Killed
            real(partial, path)

        with mock.patch.object(finetune, "replace", die_at_the_second_save), self.assertRaises(Killed):
            self.run_it("broken")
        self.assertEqual(torch.load(self.folder / "broken/last.pt", weights_only=True)["step"], 2)
        code, said = self.run_it("broken")
        self.assertEqual(code, 0)
        self.assertIn("going on after step 2 of 6", said)
        curves = [(self.folder / out / "curve.jsonl").read_text() for out in ("straight", "broken")]
        self.assertEqual(*curves)
        self.assertEqual([json.loads(line)["step"] for line in curves[0].splitlines()], [1, 2, 3, 3, 4, 5, 6, 6])
        results = [json.loads((self.folder / out / "result.json").read_text()) for out in ("straight", "broken")]
        for name in (*evaluate.NAMES, "steps", "seed", "weights"):
            self.assertEqual(results[0][name], results[1][name], name)
        # Once finished it only says the result again, and takes no other arguments.
        with mock.patch.object(finetune, "Run", side_effect=AssertionError):
            self.assertIn('"AP50"', self.run_it("broken")[1])
            self.assertIn("was begun with lr = 0.01, this command says 0.02", self.run_it("broken", lr=0.02)[1])

    def test_other_weights_under_the_same_name_are_refused(self):
        weights = self.folder / "weights.pth"
        backbone = finetune.models.build("faster", 18, 16, 16, 3, 64, "batch").backbone.state_dict()
        for again in (0, 1):
            torch.save({name: value + again for name, value in backbone.items()}, weights)
            code, said = self.run_it("begun", steps=1, weights=weights)
            self.assertEqual(code, again, said)
        self.assertIn("was begun with weights_sha256 = ", said)

    def test_a_signal_ends_a_run_after_its_step(self):
        def signalled(*given):
            signal.raise_signal(signal.SIGTERM)
            return evaluate.evaluate(*given)

        with mock.patch.object(finetune, "evaluate", signalled):
            code, said = self.run_it("signalled", steps=2, **{"eval-every": 1, "save-every": 0})
        self.assertEqual(code, finetune.INTERRUPTED)
        self.assertIn("stopped after step 1 of 2", said)
        self.assertEqual(torch.load(self.folder / "signalled/last.pt", weights_only=True)["step"], 1)

    def test_mask_r_cnn_tells_both_kinds_of_precision(self):
        code, said = self.run_it("mask", detector="mask", steps=2, **{"eval-every": 0, "limit-val": 2})
        self.assertEqual(code, 0, said)
        result = json.loads((self.folder / "mask/result.json").read_text())
        self.assertEqual(set(evaluate.NAMES), set(result) & set(result["mask"]))
        self.assertIsNone(result["APl"], "no object here is that large")

    def test_a_perfect_prediction_has_a_precision_of_one(self):
        for agnostic in (False, True):
            coco = self.coco(masks=True, class_agnostic=agnostic)
            images = {image["id"]: image for image in coco.images}
            results = [{"image_id": a["image_id"], "category_id": a["category_id"], "score": 0.9, "bbox": a["bbox"],
                        "segmentation": data.encoded(a, images[a["image_id"]])}
                       for a in coco.content["annotations"] if not a["iscrowd"]]
            for kind in ("bbox", "segm"):
                solid = [r for r in results if r["bbox"][2] and (kind == "bbox" or r["bbox"][0] < 70)]
                seen = [image for image in coco.images if image["id"] != 10]
                self.assertEqual(evaluate.score(coco, seen, solid, kind)["AP"], 1.0)
                self.assertEqual(evaluate.score(coco, seen, [], kind)["AP"], 0.0)

    def test_what_is_trained_on(self):
        coco = self.coco(masks=True)
        self.assertEqual(coco.left_out, {"crowd": 1, "tiny": 1, "images": 1})
        self.assertEqual(coco.labels, {3: 1, 7: 2})
        picture, target = coco.sample(0, flip=False)
        self.assertEqual(tuple(picture.shape), (3, 64, 80))
        self.assertEqual(target["boxes"].tolist(), [[6, 8, 36, 28], [44, 20, 68, 56], [70, 0, 80, 9]])
        self.assertEqual(target["labels"].tolist(), [1, 2, 2])
        for flip in (False, True):
            for index in range(3):
                _, target = coco.sample(index, flip)
                for box, inside in zip(target["boxes"].int().tolist(), target["masks"]):
                    ys, xs = torch.nonzero(inside, as_tuple=True)
                    self.assertEqual([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], box, "the mask is where the box is")

    def test_every_epoch_has_every_sample_once_whatever_step_one_begins_at(self):
        picks = [data.batch(5, step, 4, 10) for step in range(10)]
        order = [index for step in picks for index, _ in step]
        self.assertEqual([sorted(order[n:n + 10]) for n in (0, 10, 20)], [list(range(10))] * 3)
        self.assertNotEqual(order[:10], order[10:20])
        self.assertEqual({flip for step in picks for _, flip in step}, {True, False})

    def test_the_usual_sizes_make_the_usual_network(self):
        theirs = torchvision.models.detection
        for detector, usual in (("faster", theirs.fasterrcnn_resnet50_fpn), ("mask", theirs.maskrcnn_resnet50_fpn)):
            stock = usual(weights=None, weights_backbone=None, num_classes=91)
            ours = models.build(detector, 50, 64, 256, 91, 800, "frozen")
            shapes = [{name: tensor.shape for name, tensor in model.state_dict().items() if not name.endswith(models.COUNTER)}
                      for model in (ours, stock)]
            self.assertEqual(*shapes)
            self.assertEqual(ours.rpn.anchor_generator.sizes, stock.rpn.anchor_generator.sizes)

    def test_an_export_is_loaded_whole(self):
        shapes = [line.split("\t")[:2] for line in NAMES.read_text().splitlines() if not line.startswith("#")]
        named = {name: torch.randn([int(n) for n in shape.strip("()").split(",") if n]) for name, shape in shapes}
        torch.save(named, self.folder / "fpn.pth")
        torch.save(torchvision.models.resnet50().state_dict(), self.folder / "classifier.pth")
        folder = os.environ.get("MCL_EXPORTS")
        files = [Path(folder) / f"{kind}-online.pth" for kind in ("torchvision-fpn", "torchvision")] if folder else []
        for file in [self.folder / "fpn.pth", self.folder / "classifier.pth", *files]:
            for norm in models.NORMS:
                target = models.backbone(50, 64, 256, norm)
                models.load(target, file)
                held = target.state_dict()
                for name, tensor in torch.load(file, weights_only=True).items():
                    name = name if name.startswith(("body.", "fpn.")) else f"body.{name}"
                    if not name.endswith(models.COUNTER) and not name.startswith("body.fc."):
                        self.assertTrue(torch.equal(held[name], tensor), f"{name} of {file.name}")

    def test_errors_say_what_to_do(self):
        narrow = models.backbone(18, 16, 16, "batch")
        torch.save(narrow.state_dict(), self.folder / "narrow.pth")
        torch.save({"state_dict": {}}, self.folder / "other.pth")
        (self.folder / "text.pth").write_text("no tensors")
        content = json.loads((self.folder / "instances.json").read_text())
        content["images"][0]["file_name"] = "gone.png"
        (self.folder / "gone.json").write_text(json.dumps(content))
        content = json.loads((self.folder / "instances.json").read_text())
        del content["annotations"][0]["segmentation"]
        (self.folder / "boxes.json").write_text(json.dumps(content))
        (self.folder / "half.json").write_text('{"images": [')
        narrow, at = str(self.folder / "narrow.pth"), lambda name: str(self.folder / name)
        for text, changed in (
            ("--width 16", {"weights": narrow, "width": 64}),
            ("--depth 18", {"weights": narrow, "depth": 34}),
            ("--fpn-channels 16", {"weights": narrow, "fpn-channels": 64}),
            ("holds more than tensors", {"weights": at("other.pth")}),
            ("--format torchvision-fpn", {"weights": at("text.pth")}),
            ("there is no file", {"weights": at("none.pth")}),
            ("there is no file", {"val-annotations": at("none.json")}),
            ("there is no folder", {"train-images": at("nowhere")}),
            ("such as gone.png", {"train-annotations": at("gone.json")}),
            ("cannot be read as JSON", {"train-annotations": at("half.json")}),
            ("use --detector faster", {"train-annotations": at("boxes.json"), "detector": "mask"}),
            ("lower --lr", {"lr": 1e12, "warmup": 0}),
        ):
            code, said = self.run_it(f"error {text} {len(changed)}", **changed)
            self.assertEqual(code, 1, said)
            self.assertIn(text, said)
            self.assertNotIn("Traceback", said)


if __name__ == "__main__":
    unittest.main()
