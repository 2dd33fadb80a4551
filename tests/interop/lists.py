"""The names and shapes that other tools expect, as crates/export/tests/data keeps them.

    python lists.py torchvision|torchvision-fpn|timm     from the real thing, which must be installed
    python lists.py detectron2|mmdet                     from their sources' module structure, written out below

Lines are as in names_r50.txt: name, shape, param or buffer.
"""
import sys

BLOCKS, WIDTHS, CHANNELS = (3, 4, 6, 3), (64, 128, 256, 512), 256


def norm(name, channels):
    """A batch norm that keeps a count."""
    yield f"{name}.weight", (channels,), "param"
    yield f"{name}.bias", (channels,), "param"
    yield f"{name}.running_mean", (channels,), "buffer"
    yield f"{name}.running_var", (channels,), "buffer"
    yield f"{name}.num_batches_tracked", (), "buffer"


def conv_norm(conv, bn, shape):
    yield f"{conv}.weight", shape, "param"
    yield from norm(bn, shape[0])


def detectron2():
    """build_resnet_fpn_backbone (modeling/backbone/resnet.py and fpn.py: a norm lives inside the convolution before it,
    as `.norm`) and FastRCNNConvFCHead (modeling/roi_heads/box_head.py: conv1.., fc1 after them)."""
    top = "backbone.bottom_up"
    yield from conv_norm(f"{top}.stem.conv1", f"{top}.stem.conv1.norm", (64, 3, 7, 7))
    before = 64
    for stage, (blocks, width) in enumerate(zip(BLOCKS, WIDTHS), start=2):
        for block in range(blocks):
            at = f"{top}.res{stage}.{block}"
            if block == 0:
                yield from conv_norm(f"{at}.shortcut", f"{at}.shortcut.norm", (4 * width, before, 1, 1))
            yield from conv_norm(f"{at}.conv1", f"{at}.conv1.norm", (width, before, 1, 1))
            yield from conv_norm(f"{at}.conv2", f"{at}.conv2.norm", (width, width, 3, 3))
            yield from conv_norm(f"{at}.conv3", f"{at}.conv3.norm", (4 * width, width, 1, 1))
            before = 4 * width
    for stage, width in enumerate(WIDTHS, start=2):
        for name, shape in (("lateral", (CHANNELS, 4 * width, 1, 1)), ("output", (CHANNELS, CHANNELS, 3, 3))):
            at = f"backbone.fpn_{name}{stage}"
            yield from conv_norm(at, f"{at}.norm", shape)
    for conv in range(1, 5):
        at = f"roi_heads.box_head.conv{conv}"
        yield from conv_norm(at, f"{at}.norm", (CHANNELS, CHANNELS, 3, 3))


def mmdet():
    """ResNet (mmdet/models/backbones/resnet.py), FPN of ConvModule with norm_cfg (necks/fpn.py; mmcv's ConvModule has
    `conv` and `bn`), and the shared convolutions of Shared4Conv1FCBBoxHead (roi_heads/bbox_heads/convfc_bbox_head.py)."""
    yield from conv_norm("backbone.conv1", "backbone.bn1", (64, 3, 7, 7))
    before = 64
    for stage, (blocks, width) in enumerate(zip(BLOCKS, WIDTHS), start=1):
        for block in range(blocks):
            at = f"backbone.layer{stage}.{block}"
            yield from conv_norm(f"{at}.conv1", f"{at}.bn1", (width, before, 1, 1))
            yield from conv_norm(f"{at}.conv2", f"{at}.bn2", (width, width, 3, 3))
            yield from conv_norm(f"{at}.conv3", f"{at}.bn3", (4 * width, width, 1, 1))
            if block == 0:
                yield from conv_norm(f"{at}.downsample.0", f"{at}.downsample.1", (4 * width, before, 1, 1))
            before = 4 * width
    for level, width in enumerate(WIDTHS):
        at = f"neck.lateral_convs.{level}"
        yield from conv_norm(f"{at}.conv", f"{at}.bn", (CHANNELS, 4 * width, 1, 1))
    for level in range(4):
        at = f"neck.fpn_convs.{level}"
        yield from conv_norm(f"{at}.conv", f"{at}.bn", (CHANNELS, CHANNELS, 3, 3))
    for conv in range(4):
        at = f"roi_head.bbox_head.shared_convs.{conv}"
        yield from conv_norm(f"{at}.conv", f"{at}.bn", (CHANNELS, CHANNELS, 3, 3))


def of_module(module):
    params = dict(module.named_parameters())
    for name, tensor in module.state_dict().items():
        yield name, tuple(tensor.shape), "param" if name in params else "buffer"


def model(tool):
    """The real thing, with random weights."""
    import torch

    if tool == "torchvision":
        import torchvision

        net = torchvision.models.resnet50()
        net.fc = torch.nn.Identity()
        return net
    if tool == "torchvision-fpn":
        from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

        return resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=5)
    import timm

    return timm.create_model("resnet50", num_classes=0)


def rows(tool):
    written = {"detectron2": detectron2, "mmdet": mmdet}
    return list(written[tool]() if tool in written else of_module(model(tool)))


def read(path):
    """name -> shape, from a kept list."""
    shapes = {}
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if not line.startswith("#"):
                name, shape, _ = line.rstrip("\n").split("\t")
                shapes[name] = tuple(int(n) for n in shape.strip("()").split(",") if n)
    return shapes


if __name__ == "__main__":
    for name, shape, kind in rows(sys.argv[1]):
        print(f"{name}\t{shape}\t{kind}")
