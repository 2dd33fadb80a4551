"""Steps of the peer: one for each line on standard input, each answered by a JSON line with its wall and CPU time."""

import argparse
import contextlib
import json
import os
import sys
import time

import torch
import torch.distributed as dist

from mcl import Lars, Model, follow, synchronise_norms

parser = argparse.ArgumentParser()
parser.add_argument("--depth", type=int, default=50)
parser.add_argument("--image-size", type=int, default=96)
parser.add_argument("--images", type=int, default=16)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--device", default="cpu")
parser.add_argument("--bf16", action="store_true", help="autocast to bf16")
parser.add_argument("--channels-last", action="store_true")
parser.add_argument("--rank", type=int, default=0)
parser.add_argument("--world", type=int, default=1)
parser.add_argument("--sync-norms", action="store_true", help="batch statistics over all ranks")
parser.add_argument("--store", default="127.0.0.1:0")
parser.add_argument("--warm-up", type=int, default=1)
parser.add_argument("--steps", type=int, default=1, help="of one turn")
parser.add_argument("--flops", action="store_true", help="print one step's multiply-adds and end")
a = parser.parse_args()

torch.set_num_threads(a.threads)
torch.manual_seed(a.rank)
cuda = a.device.startswith("cuda")
if cuda:
    torch.backends.cudnn.benchmark = True
if a.world > 1:
    host, port = a.store.rsplit(":", 1)
    store = dist.TCPStore(host, int(port), a.world, a.rank == 0)
    dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=a.rank, world_size=a.world)
model = Model(a.depth, a.image_size, a.images).to(a.device).train()
if a.sync_norms:
    synchronise_norms(model)
if a.channels_last:
    # Not the whole module at once: that refuses tensors of other than four dimensions.
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
optimizer = Lars([p for p in model.parameters() if p.requires_grad])
wrapped = model
if a.world > 1:
    # Buffers are not broadcast: every rank keeps its own statistics, as DDP's users switch it for speed.
    wrapped = torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)


def step():
    views = torch.randint(0, 256, (a.images, 8, 3, a.image_size, a.image_size), dtype=torch.uint8, device=a.device)
    precision = torch.autocast(a.device.split(":")[0], torch.bfloat16) if a.bf16 else contextlib.nullcontext()
    with precision:
        loss = wrapped(views, a.channels_last)
    optimizer.zero_grad(set_to_none=a.world == 1)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 500.0)
    optimizer.step()
    follow(model)
    return loss.item()


if a.flops:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    print(json.dumps({"gmac": counter.get_total_flops() / 2e9}))
    sys.exit()

for _ in range(a.warm_up):
    step()


def next_turn():
    """Rank 0 reads; all go or end together."""
    word = torch.zeros(1)
    if a.rank == 0:
        word[0] = 1.0 if sys.stdin.readline() else 0.0
    if a.world > 1:
        word = word.to(a.device)
        dist.broadcast(word, 0)
    return bool(word.item())


if a.rank == 0:
    print(json.dumps({"ready": True, "torch": torch.__version__}), flush=True)
while next_turn():
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(a.steps):
        loss = step()
    if cuda:
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if a.rank == 0:
        peak = torch.cuda.max_memory_allocated() if cuda else 0
        print(json.dumps({"wall_s": wall / a.steps, "cpu_s": cpu / a.steps, "loss": loss, "peak_bytes": peak}), flush=True)
if a.world > 1:
    dist.destroy_process_group()
