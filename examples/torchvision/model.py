"""torchvision's Faster and Mask R-CNN on a ResNet with feature pyramid, and our exports loaded into it.

Widths, pyramid channels and input sizes may be smaller than usual: heads, anchors and the number of regions that are
trained on shrink along. At the usual ones the network is torchvision's own. All layers are trained; a frozen norm keeps
scale, shift and statistics as they were loaded.
"""
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

from errors import UserError

BLOCKS = {18: (BasicBlock, [2, 2, 2, 2]), 34: (BasicBlock, [3, 4, 6, 3]), 50: (Bottleneck, [3, 4, 6, 3])}
NORMS = {"frozen": FrozenBatchNorm2d, "batch": nn.BatchNorm2d}
# Channels of the usual ResNet after its first convolution.
WIDTH = 64
# The shorter side that the usual anchors and numbers of regions belong to, in pixels.
SIZE = 800
LONGEST = 1333
ANCHORS = (32, 64, 128, 256, 512)
# Two pixels each way from the middle: a smaller anchor would be rounded to nothing.
SMALLEST_ANCHOR = 4
REGIONS = 512
FEWEST_REGIONS = 128
COUNTER = ".num_batches_tracked"
EXPORT = "mcl checkpoint export RUN --format torchvision-fpn --out FILE.pth"


class ScaledResNet(ResNet):
    """torchvision's ResNet of any width: stages have width x (1, 2, 4, 8) x expansion channels.

    `width_per_group` is something else: it changes the inside of bottlenecks alone."""

    def __init__(self, block, layers, width, norm_layer):
        self._width = width
        super().__init__(block, layers, norm_layer=norm_layer)
        self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = norm_layer(width)

    def _make_layer(self, block, planes, *rest, **named):
        if planes == WIDTH:
            self.inplanes = self._width
        return super()._make_layer(block, planes * self._width // WIDTH, *rest, **named)


class Transform(GeneralizedRCNNTransform):
    """torchvision's resizing, but with a low-pass filter, as pre-training has it: a shorter side of 128 pixels is a
    quarter of the usual image."""

    def resize(self, image, target=None):
        before = image.shape[-2:]
        scale = min(self.min_size[-1] / min(before), self.max_size / max(before))
        size = [max(1, round(side * scale)) for side in before]
        image = nn.functional.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]
        if target is not None:
            target["boxes"] = resize_boxes(target["boxes"], before, size)
            if "masks" in target:
                target["masks"] = nn.functional.interpolate(target["masks"][:, None], size=size)[:, 0]
        return image, target


def backbone(depth, width, channels, norm):
    """[N, 3, S, S] -> {"0": [N, channels, S/4, S/4], ..., "3": S/32, "pool": S/64}."""
    block, layers = BLOCKS[depth]
    resnet = ScaledResNet(block, layers, width, NORMS[norm])
    stages = [width * factor * block.expansion for factor in (1, 2, 4, 8)]
    return BackboneWithFPN(resnet, {f"layer{i + 1}": str(i) for i in range(4)}, stages, channels)


def build(detector, depth, width, channels, classes, size, norm):
    """A detector for `classes` labels, of which 0 is background, with random weights."""
    sizes = tuple((max(SMALLEST_ANCHOR, anchor * size / SIZE),) for anchor in ANCHORS)
    hidden = 4 * channels
    settings = {
        "rpn_anchor_generator": AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        "box_head": TwoMLPHead(channels * 7 * 7, hidden),
        "box_predictor": FastRCNNPredictor(hidden, classes),
        "box_batch_size_per_image": max(FEWEST_REGIONS, min(REGIONS, round(REGIONS * size / SIZE))),
    }
    kind = FasterRCNN
    if detector == "mask":
        kind = MaskRCNN
        settings["mask_head"] = MaskRCNNHeads(channels, (channels,) * 4, dilation=1)
        settings["mask_predictor"] = MaskRCNNPredictor(channels, channels, classes)
    model = kind(backbone(depth, width, channels, norm), **settings)
    usual = model.transform
    model.transform = Transform(size, round(size * LONGEST / SIZE), usual.image_mean, usual.image_std)
    return model


def load(target, file):
    """Takes an export into a backbone, every tensor of it, and says which parts it had."""
    tensors = opened(file)
    if "body.conv1.weight" in tensors:
        part, what = target, "ResNet and pyramid"
        compare(file, tensors, target, "body.")
    elif "conv1.weight" in tensors:
        part, what = target.body, "ResNet; the pyramid begins at random"
        # A classifier, as torchvision's own files have.
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}
        compare(file, tensors, target, "")
    else:
        raise UserError(f"{file} holds neither a ResNet nor one with a pyramid under torchvision's names: make it with "
                        f"`{EXPORT}`")
    # Counts of batches: formats and norms may have them or not, and none is used.
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(COUNTER)}
    tensors |= {name: tensor for name, tensor in part.state_dict().items() if name.endswith(COUNTER)}
    try:
        part.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise UserError(f"{file} does not fit this network: {str(error).splitlines()[1].strip()}") from error
    return what


def opened(file):
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {file}: make it with `{EXPORT}`") from error
    except Exception as error:  # torch raises many things at what it does not know
        raise UserError(f"{file} is no file of tensors that torch reads: make it with `{EXPORT}`") from error
    if not isinstance(tensors, dict) or not all(isinstance(t, torch.Tensor) for t in tensors.values()):
        raise UserError(f"{file} holds more than tensors by name: make it with `{EXPORT}`")
    return tensors


def compare(file, tensors, target, prefix):
    """Refuses another width, depth or number of pyramid channels, by the flag that would fit."""
    ours = target.state_dict()
    first, level = "conv1.weight", "fpn.inner_blocks.0.0.weight"
    found = {"--width": tensors[prefix + first].shape[0], "--depth": depth_of(tensors, prefix)}
    wanted = {"--width": ours["body." + first].shape[0], "--depth": depth_of(ours, "body.")}
    if level in tensors:
        found["--fpn-channels"], wanted["--fpn-channels"] = tensors[level].shape[0], ours[level].shape[0]
    for flag, value in found.items():
        if value is None:
            raise UserError(f"{file} holds a ResNet whose depth is none of {', '.join(map(str, BLOCKS))}")
        if value != wanted[flag]:
            raise UserError(f"{file} was exported from a network of {flag} {value}, this one has {wanted[flag]}: give "
                            f"{flag} {value}")


def depth_of(tensors, prefix):
    """By blocks of each stage and their convolutions."""
    layers = [len({name.removeprefix(f"{prefix}layer{stage}.").split(".")[0] for name in tensors
                   if name.startswith(f"{prefix}layer{stage}.")}) for stage in range(1, 5)]
    block = Bottleneck if f"{prefix}layer1.0.conv3.weight" in tensors else BasicBlock
    return next((depth for depth, known in BLOCKS.items() if known == (block, layers)), None)
