"""Makes an export of --format mmdet fit RetinaNet, whose pyramid begins a level higher: what is number 1 in the export is
number 0 there, of the same shape, so that loading the export itself would mix levels up without a word.

    python3 retinanet_weights.py mmdet.pth retinanet.pth
"""
import re
import sys

import torch


def shifted(tensors):
    """Backbone as it is, P3 to P5 one number lower; P2 and the box head are left out."""
    for name, tensor in tensors.items():
        level = re.fullmatch(r"(neck\.(?:lateral|fpn)_convs\.)(\d)(\..+)", name)
        if name.startswith("backbone."):
            yield name, tensor
        elif level and int(level[2]) > 0:
            yield f"{level[1]}{int(level[2]) - 1}{level[3]}", tensor


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    exported = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
    torch.save({**exported, "state_dict": dict(shifted(exported["state_dict"]))}, sys.argv[2])
