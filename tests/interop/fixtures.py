"""Makes the small files of torch and numpy in crates/export/tests/data/torch. Run once; the files are kept.

    python fixtures.py FOLDER
"""
import collections
import pickle
import sys
from pathlib import Path

import numpy
import torch

out = Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)

# Everything a view can be: whole, part of a storage, transposed, channels last, with a step, a scalar, empty.
base = torch.arange(48, dtype=torch.float32)
views = collections.OrderedDict()
views["conv1.weight"] = base[:24].reshape(2, 3, 2, 2)
views["bn1.weight"] = base[5:8]
views["bn1.bias"] = base[::7]
views["layer1.0.conv1.weight"] = base.reshape(6, 8).t()
views["layer1.0.conv2.weight"] = base[:24].reshape(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
views["layer1.0.bn1.num_batches_tracked"] = torch.tensor(7)
views["layer1.0.bn1.weight"] = torch.zeros(0)
views["layer1.0.bn2.weight"] = torch.nn.Parameter(torch.tensor([0.5, 1.5]), requires_grad=False)
views["layer2.0.bn1.weight"] = torch.tensor([1.5, -2.0, 6e-8], dtype=torch.float16)
views["layer2.0.bn2.weight"] = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
views["layer2.0.bn3.weight"] = torch.tensor([0.1], dtype=torch.float64)
views["fc.weight"] = torch.ones(1, 2)
views._metadata = collections.OrderedDict([("", {"version": 1})])
torch.save(views, out / "views.pth")
torch.save(views, out / "views_legacy.pth", _use_new_zipfile_serialization=False)

# A checkpoint as mmcv writes it after training of the official code: the backbone is there under two names, and there
# are an optimiser and notes.
conv = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3, 1, 1))
optimizer = torch.optim.SGD([conv], lr=0.1, momentum=0.9, weight_decay=1e-4)
conv.sum().backward()
optimizer.step()
state = collections.OrderedDict()
for name in ("encoder_q.0.conv1.weight", "backbone.conv1.weight"):
    state[name] = conv.data
norm = torch.nn.BatchNorm2d(1)
norm.num_batches_tracked += 3
for branch in ("lateral_convs", "fpn_convs"):
    for level in range(4):
        state[f"encoder_q.1.{branch}.{level}.conv.weight"] = torch.ones(1, 1, 1, 1)
        for name, tensor in norm.state_dict().items():
            state[f"encoder_q.1.{branch}.{level}.bn.{name}"] = tensor.clone()
state["encoder_k.0.conv1.weight"] = conv.data * 2
predictor = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.BatchNorm1d(1), torch.nn.ReLU(), torch.nn.Linear(1, 1))
torch.nn.init.constant_(predictor[0].bias, 0.25)
for name, tensor in predictor.state_dict().items():
    state[f"head.predictor.0.mlp.{name}"] = tensor.clone()
# Notes that hold more than plain values, as mmcv and people leave them.
notes = {"dtype": torch.float32, "device": torch.device("cpu"), "lr": numpy.float64(0.1), "best": numpy.float32(1),
         "flags": numpy.array([True, False]), "rng": numpy.arange(3, dtype=numpy.uint32), "raw": b"\xff\x00a", "none": b""}
meta = {"epoch": 2, "iter": 10, "mmcv_version": "1.0.3", "time": "Mon", "hook_msgs": {}, "CLASSES": ("a", "b"), "lr": [0.1], "big": 2**40, "notes": notes}
torch.save({"meta": meta, "state_dict": state, "optimizer": optimizer.state_dict()}, out / "official.pth")

# Detectron2's pickle, in the protocols that Python has used by default, one array in Fortran's order.
model = {
    "stem.conv1.weight": numpy.arange(6, dtype=numpy.float32).reshape(2, 3, 1, 1),
    "res2.0.conv1.weight": numpy.asfortranarray(numpy.arange(6, dtype=numpy.float32).reshape(2, 3)),
    "stem.conv1.norm.num_batches_tracked": numpy.array(5),
    "junk.mlp.weight": numpy.ones(2, dtype=numpy.float32),
}
for protocol in (2, 3, 4, 5):
    data = {"model": model, "__author__": "OpenSelfSup", "matching_heuristics": True}
    (out / f"detectron2_{protocol}.pkl").write_bytes(pickle.dumps(data, protocol=protocol))


# A parameter with attributes of its own, and a tensor that repeats one row without holding it twice.
tagged = torch.nn.Parameter(torch.tensor([0.5, 1.5]), requires_grad=False)
tagged.tag = "mine"
torch.save({"conv1.weight": torch.ones(1, 3, 1, 1), "bn1.weight": tagged}, out / "tagged.pth")
torch.save({"conv1.weight": torch.ones(1, 3, 1, 1).expand(64, 3, 7, 7)}, out / "expanded.pth")


class Harm:
    def __reduce__(self):
        return print, ("code ran",)


torch.save({"state_dict": {"conv1.weight": torch.ones(1)}, "meta": Harm()}, out / "harm.pth")
