"""Opens every export in the tool that it is for; `scripts/interop.sh` calls it.

Each check gives one row of a table: what was opened, how many tensors agree, and the differences. A difference fails
the whole.
"""
import argparse
import importlib
import json
import pickle
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import blake3
import numpy
import safetensors.torch
import timm  # noqa: F401  (so that a missing package is told at once)
import torch
import yaml

import lists

HERE = Path(__file__).parent
DATA = HERE / "../../crates/export/tests/data"
ENCODERS = {"momentum": "encoder_k.", "online": "encoder_q."}
EXAMPLES = HERE / "../../examples"
EPSILON = 1e-5
# Absolute, on maps whose values are about one to ten.
FORWARD = 1e-4
LISTS = {
    "torchvision": "torchvision_resnet50.txt",
    "torchvision-fpn": "torchvision_resnet50_fpn.txt",
    "timm": "timm_resnet50.txt",
    "detectron2": "detectron2_r50_fpn.txt",
    "mmdet": "mmdet_r50_fpn.txt",
}
rows = []


def row(what, count, differences):
    differences = list(differences)
    rows.append((what, count, differences))


def shapes(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def differing(found, expected):
    """Names that one side lacks, and values that differ; for dicts of shapes or of tensors."""
    for name in sorted(set(found) | set(expected)):
        if name not in found:
            yield f"{name} is missing"
        elif name not in expected:
            yield f"{name} is not expected"
        elif not equal(found[name], expected[name]):
            yield f"{name} differs"


def equal(a, b):
    if isinstance(a, tuple):
        return a == b
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def state_of(checkpoints):
    """The whole state, straight from the slices."""
    state = {}
    for slice_file in sorted(checkpoints.glob("step-*/slice-*.safetensors")):
        state.update(safetensors.torch.load_file(slice_file))
    return state


def encoder_of(state, encoder):
    prefix = ENCODERS[encoder]
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}


def kept_lists():
    for tool, file in LISTS.items():
        kept = lists.read(DATA / file)
        real = {name: tuple(shape) for name, shape, _ in lists.rows(tool)}
        where = "its sources' structure" if tool in ("detectron2", "mmdet") else "the installed one"
        row(f"list of names for {tool}, against {where}", len(kept), differing(kept, real))


def strict(tool, file, own, expected):
    """The tool's own module takes the file, and then holds these bits."""
    loaded = safetensors.torch.load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    differences = list(differing(shapes(loaded), lists.read(DATA / LISTS[tool])))
    model = lists.model(tool)
    try:
        model.load_state_dict(loaded, strict=True)
    except RuntimeError as error:
        differences.append(str(error))
    differences += differing(dict(model.state_dict()), expected)
    row(f"{file.name} in {tool}, strict=True", len(loaded), differences)
    return model.eval()


def folded(own):
    """Convolutions with a bias for the pyramid's convolutions and norms; in double precision, rounded once."""
    for ours, theirs in (("lateral_convs", "inner_blocks"), ("fpn_convs", "layer_blocks")):
        for level in range(4):
            part = {n: own[f"1.{ours}.{level}.{n}"].double() for n in
                    ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")}
            scale = part["bn.weight"] / (part["bn.running_var"] + EPSILON).sqrt()
            yield f"fpn.{theirs}.{level}.0.weight", (part["conv.weight"] * scale[:, None, None, None]).float()
            yield f"fpn.{theirs}.{level}.0.bias", (part["bn.bias"] - part["bn.running_mean"] * scale).float()


def pyramid_outputs(file, model, own):
    """P2..P5 of torchvision's network against convolution, then norm, as the network was trained."""
    def layer(x, name, padding):
        x = torch.nn.functional.conv2d(x, own[f"{name}.conv.weight"], padding=padding)
        norm = [own[f"{name}.bn.{n}"] for n in ("running_mean", "running_var", "weight", "bias")]
        return torch.nn.functional.batch_norm(x, *norm, eps=EPSILON)

    with torch.no_grad():
        picture = torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(1)) - 0.5
        stages = list(model.body(picture).values())
        laterals = [layer(x, f"1.lateral_convs.{i}", 0) for i, x in enumerate(stages)]
        for i in (2, 1, 0):
            laterals[i] = laterals[i] + torch.nn.functional.interpolate(laterals[i + 1], size=laterals[i].shape[-2:])
        found = list(model(picture).values())[:4]
        expected = [layer(x, f"1.fpn_convs.{i}", 1) for i, x in enumerate(laterals)]
        errors = [float((f - e).abs().max() / e.abs().max()) for f, e in zip(found, expected)]
    wrong = [f"P{i + 2}: relative error {e:.1e}" for i, e in enumerate(errors) if not e < 1e-5]
    row(f"{file.name}: P2..P5 with folded norms, largest error {max(errors):.1e}", 4, wrong)


def forward(file, model):
    """C2..C5 and P2..P5 of our network against torchvision's, on the picture that ours saw."""
    ours = safetensors.torch.load_file(file)
    with torch.no_grad():
        theirs = {f"c{i + 2}": x for i, x in enumerate(model.body(ours["picture"]).values())}
        theirs |= {f"p{i + 2}": x for i, x in enumerate(list(model(ours["picture"]).values())[:4])}
    for name, x in theirs.items():
        error, size = float((ours[name] - x).abs().max()), float(x.abs().max())
        flat = float(x.std()) < 0.01
        wrong = [f"off by {error:.1e}, expected at most {FORWARD}"] if not error <= FORWARD else []
        wrong += ["the same everywhere: nothing was compared"] if flat else []
        row(f"{file.name}: {name} {tuple(x.shape)} up to {size:.1f}, off by {error:.1e}", x.numel(), wrong)


def mmdet(file, own):
    loaded = torch.load(file, weights_only=True)
    tensors = loaded["state_dict"]
    differences = list(differing(shapes(tensors), lists.read(DATA / LISTS["mmdet"])))
    differences += [] if isinstance(loaded["meta"], dict) else ["meta is no dictionary"]
    prefixes = {"backbone.": "0.", "neck.": "1.", "roi_head.bbox_head.shared_convs.": "2.cls_convs."}
    expected = {
        theirs + name.removeprefix(ours): t
        for theirs, ours in prefixes.items() for name, t in own.items() if name.startswith(ours)
    }
    row(f"{file.name}: names and bits for mmdet", len(tensors), differences + list(differing(tensors, expected)))


def detectron2_name(own):
    """What the official converter calls a tensor of an encoder; rules written from its description, not from ours."""
    rules = (
        (r"0\.layer(\d)\.(\d+)\.downsample\.0\.", lambda m: f"res{int(m[1]) + 1}.{m[2]}.shortcut."),
        (r"0\.layer(\d)\.(\d+)\.downsample\.1\.", lambda m: f"res{int(m[1]) + 1}.{m[2]}.shortcut.norm."),
        (r"0\.layer(\d)\.(\d+)\.conv(\d)\.", lambda m: f"res{int(m[1]) + 1}.{m[2]}.conv{m[3]}."),
        (r"0\.layer(\d)\.(\d+)\.bn(\d)\.", lambda m: f"res{int(m[1]) + 1}.{m[2]}.conv{m[3]}.norm."),
        (r"0\.conv1\.", lambda m: "stem.conv1."),
        (r"0\.bn1\.", lambda m: "stem.conv1.norm."),
        (r"1\.lateral_convs\.(\d)\.conv\.", lambda m: f"fpn_lateral{int(m[1]) + 2}."),
        (r"1\.lateral_convs\.(\d)\.bn\.", lambda m: f"fpn_lateral{int(m[1]) + 2}.norm."),
        (r"1\.fpn_convs\.(\d)\.conv\.", lambda m: f"fpn_output{int(m[1]) + 2}."),
        (r"1\.fpn_convs\.(\d)\.bn\.", lambda m: f"fpn_output{int(m[1]) + 2}.norm."),
        (r"2\.cls_convs\.(\d)\.conv\.", lambda m: f"box_head.conv{int(m[1]) + 1}."),
        (r"2\.cls_convs\.(\d)\.bn\.", lambda m: f"box_head.conv{int(m[1]) + 1}.norm."),
    )
    for pattern, name in rules:
        match = re.match(pattern, own)
        if match:
            return name(match) + own[match.end():]
    return f"(no rule for {own})"


def configurations(exports):
    """The configurations beside Detectron2's and MMDetection's files, as those read them."""
    for encoder in ENCODERS:
        file = exports / f"detectron2-{encoder}.yaml"
        model = yaml.safe_load(file.read_text())["MODEL"]
        wanted = {"WEIGHTS": f"detectron2-{encoder}.pkl", "PIXEL_MEAN": [123.675, 116.28, 103.53]}
        found = {key: model[key] for key in wanted}
        wanted |= {"RESNETS.DEPTH": 50, "RESNETS.STRIDE_IN_1X1": False, "RESNETS.NORM": "SyncBN", "FPN.NORM": "SyncBN",
                   "FPN.OUT_CHANNELS": 256, "ROI_BOX_HEAD.NUM_CONV": 4, "ROI_BOX_HEAD.NORM": "SyncBN", "BACKBONE.FREEZE_AT": 0}
        for key in wanted:
            if "." in key:
                section, name = key.split(".")
                found[key] = model[section][name]
        wrong = [f"{key}: {found[key]}, expected {wanted[key]}" for key in wanted if found[key] != wanted[key]]
        row(f"{file.name} as YAML", len(wanted), wrong)
        example = yaml.safe_load((EXAMPLES / "detectron2/mask_rcnn_r50_fpn_1x.yaml").read_text())["MODEL"]
        wrong = [f"{key}: {example.get(key)}, exported {model.get(key)}" for key in sorted({*example, *model} - {"WEIGHTS"})
                 if example.get(key) != model.get(key)]
        row(f"examples/detectron2 against {file.name}", len(example), wrong)
        mmdet_configuration(exports / f"mmdet-{encoder}.py", f"mmdet-{encoder}.pth")
    mmdet_configuration(EXAMPLES / "mmdetection/mask-rcnn_r50_fpn_1x_coco.py", "mmdet.pth")


def mmdet_retinanet(file, own):
    """RetinaNet's pyramid begins at C3: its levels 0 to 2 are the encoder's 1 to 3."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "retinanet.pth"
        subprocess.run([sys.executable, EXAMPLES / "mmdetection/retinanet_weights.py", file, out], check=True)
        tensors = torch.load(out, weights_only=True)["state_dict"]
    expected = {}
    for name, tensor in own.items():
        part, _, rest = name.partition(".")
        if part == "0":
            expected[f"backbone.{rest}"] = tensor
        elif part == "1" and int((split := rest.split("."))[1]) > 0:
            expected[".".join(("neck", split[0], str(int(split[1]) - 1), *split[2:]))] = tensor
    row(f"{file.name} renumbered for RetinaNet", len(tensors), differing(tensors, expected))


# What the base configuration of MMDetection 3 says of what the export changes or must leave alone.
BASE = """
model = dict(
    type='MaskRCNN',
    data_preprocessor=dict(type='DetDataPreprocessor', mean=[1.0, 1.0, 1.0], std=[2.0, 2.0, 2.0], bgr_to_rgb=False),
    backbone=dict(type='ResNet', depth=101, num_stages=4, norm_cfg=dict(type='BN', requires_grad=True), norm_eval=True,
                  style='caffe', init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50')),
    neck=dict(type='FPN', in_channels=[1, 2, 3, 4], out_channels=5, num_outs=5),
    rpn_head=dict(type='RPNHead', in_channels=5, feat_channels=5),
    roi_head=dict(
        type='StandardRoIHead',
        bbox_roi_extractor=dict(type='SingleRoIExtractor', out_channels=5),
        bbox_head=dict(type='Shared2FCBBoxHead', in_channels=5, num_classes=80),
        mask_roi_extractor=dict(type='SingleRoIExtractor', out_channels=5),
        mask_head=dict(type='FCNMaskHead', in_channels=5)))
"""


def mmdet_configuration(file, checkpoint):
    """mmengine itself merges it into a base that lies where MMDetection 3 keeps its own: PACKAGE/.mim/configs."""
    from mmengine.config import Config

    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "mmdet"
        base = package / ".mim/configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"
        base.parent.mkdir(parents=True)
        base.write_text(BASE)
        (package / "__init__.py").touch()
        (package / ".mim/model-index.yml").write_text("Import:\n  - configs/mask_rcnn/metafile.yml\n")
        models = {"Models": [{"Name": "it", "Config": "configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"}]}
        (base.parent / "metafile.yml").write_text(yaml.safe_dump(models))
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
        try:
            model = Config.fromfile(str(file)).model
        except Exception as error:  # whatever it says is the difference
            row(f"{file.name} in mmengine", 0, [f"{type(error).__name__}: {error}"])
            return
        finally:
            sys.path.remove(folder)
    wanted = {
        "type": "MaskRCNN",
        "data_preprocessor.type": "DetDataPreprocessor",
        "data_preprocessor.mean": [123.675, 116.28, 103.53],
        "data_preprocessor.bgr_to_rgb": True,
        "init_cfg.checkpoint": checkpoint,
        "backbone.type": "ResNet",
        "backbone.depth": 50,
        "backbone.base_channels": 64,
        "backbone.norm_cfg.type": "SyncBN",
        "backbone.norm_eval": False,
        "backbone.style": "pytorch",
        "backbone.init_cfg": None,
        "neck.type": "FPN",
        "neck.in_channels": [256, 512, 1024, 2048],
        "neck.out_channels": 256,
        "neck.num_outs": 5,
        "neck.norm_cfg.type": "SyncBN",
        "rpn_head.in_channels": 256,
        "roi_head.bbox_head.type": "Shared4Conv1FCBBoxHead",
        "roi_head.bbox_head.num_classes": 80,
        "roi_head.bbox_head.norm_cfg.type": "SyncBN",
        "roi_head.mask_head.type": "FCNMaskHead",
        "roi_head.mask_head.in_channels": 256,
    }
    wrong = []
    for path, value in wanted.items():
        found = model
        for key in path.split("."):
            found = found.get(key, "nothing") if hasattr(found, "get") else "nothing"
        if found != value:
            wrong.append(f"model.{path}: {found}, expected {value}")
    row(f"{file.name} merged by mmengine into its base", len(wanted), wrong)


def detectron2(file, own, numpy_1):
    with open(file, "rb") as stream:
        loaded = pickle.load(stream, encoding="latin1")
    model = loaded["model"]
    differences = [] if loaded["matching_heuristics"] is True and loaded["__author__"] else ["the head of the file"]
    differences += [f"{n} is no array" for n, a in model.items() if not isinstance(a, numpy.ndarray)]
    # Detectron2 takes the longest name that a parameter's name ends with.
    met = {}
    for full, shape in lists.read(DATA / LISTS["detectron2"]).items():
        names = [n for n in model if full == n or full.endswith("." + n)]
        if not names:
            differences.append(f"{full} is met by none")
            continue
        best = max(names, key=len)
        met[best] = full
        if tuple(model[best].shape) != shape:
            differences.append(f"{full}: shape {model[best].shape}, expected {shape}")
    differences += [f"{name} meets none" for name in model if name not in met]
    expected = {detectron2_name(name): t for name, t in own.items() if not name.startswith("2.mlp.")}
    differences += differing({name: torch.from_numpy(array.copy()) for name, array in model.items()}, expected)
    row(f"{file.name}: names, shapes and bits for detectron2, numpy {numpy.__version__}", len(model), differences)
    program = (
        "import sys, pickle; sys.path.insert(0, sys.argv[1]); import numpy; "
        "model = pickle.load(open(sys.argv[2], 'rb'), encoding='latin1')['model']; "
        "import hashlib; h = hashlib.sha256(); [h.update(n.encode() + a.tobytes()) for n, a in model.items()]; "
        "print(numpy.__version__, h.hexdigest())"
    )
    said = subprocess.run([sys.executable, "-W", "error", "-c", program, numpy_1, file], capture_output=True, text=True)
    import hashlib

    digest = hashlib.sha256()
    for name, array in model.items():
        digest.update(name.encode() + array.tobytes())
    version, _, found = said.stdout.strip().partition(" ")
    wrong = [] if found == digest.hexdigest() and version.startswith("1.") else [said.stderr or "other arrays"]
    row(f"{file.name}: the same arrays with numpy {version}", len(model), wrong)


def cards(exports):
    for card in sorted(exports.glob("*.card.json")):
        facts = json.loads(card.read_text())
        file = exports / facts["file"]["name"]
        digest = blake3.blake3(file.read_bytes()).hexdigest()
        if digest != facts["file"]["blake3"] or not card.with_suffix(".md").exists():
            row(card.name, 1, ["the digest differs, or there is no text"])
    row("cards name their files' digests", len(list(exports.glob("*.card.json"))), [])


def imports(mcl, exports, own, state):
    """What torch writes, and what was exported, comes back bit for bit."""
    import torchvision

    model = torchvision.models.resnet50()
    expected = {f"backbone.{n}": t for n, t in model.state_dict().items() if not n.startswith("fc.")}
    files = {}
    for name, legacy in (("torch", False), ("torch-legacy", True)):
        files[exports / f"{name}.pth"] = expected
        torch.save(model.state_dict(), exports / f"{name}.pth", _use_new_zipfile_serialization=not legacy)
    official = {n: t for n, t in state.items() if not n.startswith(("optimizer.", "trainer."))}
    alias = {f"backbone.{n[2:]}": t for n, t in own["online"].items() if n.startswith("0.")}
    torch.save({"meta": {"epoch": 1, "CLASSES": None}, "state_dict": {**official, **alias}}, exports / "official.pth")
    files[exports / "official.pth"] = official
    parts = {"0.": "backbone.", "1.": "neck.", "2.": "projector."}
    ours = {parts[n[:2]] + n[2:]: t for n, t in own["momentum"].items()}
    files[exports / "safetensors-momentum.safetensors"] = ours
    no_mlp = {n: t for n, t in ours.items() if not n.startswith("projector.mlp.")}
    files[exports / "detectron2-momentum.pkl"] = no_mlp
    files[exports / "mmdet-momentum.pth"] = no_mlp
    files[exports / "timm-momentum.pth"] = {n: t for n, t in ours.items() if n.startswith("backbone.")}
    for file, wanted in files.items():
        out = exports / "imported.safetensors"
        said = subprocess.run([mcl, "checkpoint", "import", file, "--out", out], capture_output=True, text=True)
        if said.returncode:
            row(f"import of {file.name}", 0, [said.stderr])
            continue
        found = safetensors.torch.load_file(out)
        row(f"import of {file.name}", len(found), differing(found, wanted))


def documented_example(checkpoints):
    """The example in docs/checkpoint-format.md, as it stands there."""
    page = (HERE / "../../docs/checkpoint-format.md").read_text()
    program = page.split("```python\n")[1].split("```")[0]
    newest = sorted(checkpoints.glob("step-*"))[-1]
    said = subprocess.run([sys.executable, "-c", program, newest], capture_output=True, text=True)
    wrong = [] if said.returncode == 0 else [said.stderr]
    row(f"the example of docs/checkpoint-format.md: {said.stdout.strip()}", 1, wrong)
    # The same on a damaged copy must fail.
    damaged = newest.parent.parent / "damaged"
    damaged.mkdir(exist_ok=True)
    for file in newest.glob("*"):
        (damaged / file.name).write_bytes(file.read_bytes())
    victim = next(damaged.glob("slice-000*.safetensors"))
    bytes_ = bytearray(victim.read_bytes())
    bytes_[-1] ^= 1
    victim.write_bytes(bytes_)
    said = subprocess.run([sys.executable, "-c", program, damaged], capture_output=True, text=True)
    row("the example refuses a checkpoint with one bit changed", 1, [] if said.returncode else ["it did not"])


def main():
    parser = argparse.ArgumentParser()
    for name in ("--mcl", "--checkpoints", "--exports", "--numpy-1"):
        parser.add_argument(name, required=True, type=Path)
    a = parser.parse_args()
    state = state_of(a.checkpoints)
    own = {encoder: encoder_of(state, encoder) for encoder in ENCODERS}
    kept_lists()
    for encoder in ENCODERS:
        backbone = {n[2:]: t for n, t in own[encoder].items() if n.startswith("0.")}
        strict("torchvision", a.exports / f"torchvision-{encoder}.pth", own[encoder], backbone)
        for ending in ("pth", "safetensors"):
            strict("timm", a.exports / f"timm-{encoder}.{ending}", own[encoder], backbone)
        body = {f"body.{n}": t for n, t in backbone.items() if not n.endswith("num_batches_tracked")}
        file = a.exports / f"torchvision-fpn-{encoder}.pth"
        model = strict("torchvision-fpn", file, own[encoder], {**body, **dict(folded(own[encoder]))})
        pyramid_outputs(file, model, own[encoder])
        forward(a.exports / f"features-{encoder}.safetensors", model)
        mmdet(a.exports / f"mmdet-{encoder}.pth", own[encoder])
        mmdet_retinanet(a.exports / f"mmdet-{encoder}.pth", own[encoder])
        detectron2(a.exports / f"detectron2-{encoder}.pkl", own[encoder], a.numpy_1)
    configurations(a.exports)
    cards(a.exports)
    imports(a.mcl, a.exports, own, state)
    documented_example(a.checkpoints)
    width = max(len(what) for what, _, _ in rows)
    for what, count, differences in rows:
        print(f"{what:<{width}}  {count:>5}  {'ok' if not differences else f'{len(differences)} DIFFERENCES'}")
        for difference in differences[:5]:
            print(f"    {difference}")
    failed = sum(bool(differences) for _, _, differences in rows)
    print(f"{len(rows) - failed} of {len(rows)} checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
