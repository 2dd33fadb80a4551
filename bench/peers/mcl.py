"""MCL pre-training in plain PyTorch, eager, as the paper's program computes it: the whole graph, every level for every
picture. A peer for measurements, written from the method's description (arXiv 2304.02010), not from its code."""

import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision

RATIOS = (1, 2, 4, 8)
WEIGHTS = (1 / 2, 1 / 4, 1 / 8, 1 / 8)
PICTURES_PER_MONTAGE = (1, 4, 16, 32)
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    def __init__(self, depth):
        super().__init__()
        net = getattr(torchvision.models, f"resnet{depth}")()
        self.stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        self.layers = nn.ModuleList([net.layer1, net.layer2, net.layer3, net.layer4])
        self.channels = [64, 128, 256, 512] if depth < 50 else [256, 512, 1024, 2048]

    def forward(self, x):
        x, out = self.stem(x), []
        for layer in self.layers:
            x = layer(x)
            out.append(x)
        return out


def conv_bn(inputs, outputs, kernel):
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Pyramid(nn.Module):
    def __init__(self, channels, width=256):
        super().__init__()
        self.lateral = nn.ModuleList([conv_bn(c, width, 1) for c in channels])
        self.output = nn.ModuleList([conv_bn(width, width, 3) for _ in channels])

    def forward(self, features):
        maps = [lateral(f) for lateral, f in zip(self.lateral, features)]
        for i in range(3, 0, -1):
            maps[i - 1] = maps[i - 1] + F.interpolate(maps[i], size=maps[i - 1].shape[2:], mode="nearest")
        return [output(m) for output, m in zip(self.output, maps)]


class Projector(nn.Module):
    def __init__(self, side, width=256, convs=4, hidden=2048, embedding=256):
        super().__init__()
        self.side = side
        layers = []
        for _ in range(convs):
            layers += [conv_bn(width, width, 3), nn.ReLU(inplace=True)]
        self.convs = nn.Sequential(*layers)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, embedding),
            nn.BatchNorm1d(embedding, affine=False),
        )

    def forward(self, x):
        n, c, h, w = x.shape
        a = self.side
        x = x.reshape(n, c, h // a, a, w // a, a).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, a, a)
        rows = self.mlp(self.convs(x).mean(dim=(2, 3)))
        return rows.reshape(n, (h // a) * (w // a), -1)


class Encoder(nn.Module):
    def __init__(self, depth, size):
        super().__init__()
        self.backbone = Backbone(depth)
        self.pyramid = Pyramid(self.backbone.channels)
        self.projector = Projector(size // 32)

    def forward(self, x):
        return [self.projector(level) for level in self.pyramid(self.backbone(x))]


class Model(nn.Module):
    """Losses of one rank: 8 views of N pictures, u8 [N, 8, 3, S, S], to the sum over sides and levels."""

    def __init__(self, depth, size, pictures):
        super().__init__()
        self.online = Encoder(depth, size)
        self.momentum = Encoder(depth, size)
        self.momentum.load_state_dict(self.online.state_dict())
        self.momentum.requires_grad_(False)
        predictor = lambda: nn.Sequential(
            nn.Linear(256, 2048), nn.BatchNorm1d(2048), nn.ReLU(inplace=True), nn.Linear(2048, 256)
        )
        self.predictors = nn.ModuleList([predictor() for _ in RATIOS])
        self.montages = [-(-pictures // m) for m in PICTURES_PER_MONTAGE]
        self.register_buffer("mean", 255 * torch.tensor(MEAN).view(1, 1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(STD).view(1, 1, 3, 1, 1))

    def side(self, views):
        """Montages of every level, [P, 3, S, S], and the picture of every tile."""
        n, _, _, size, _ = views.shape
        pictures, labels = [], []
        for level, (r, b) in enumerate(zip(RATIOS, self.montages)):
            view = views[:, level]
            if r == 1:
                pictures.append(view)
                labels.append(torch.arange(n, device=views.device))
                continue
            index = torch.randperm(r * r * b, device=views.device) % n
            small = F.interpolate(view, scale_factor=1 / r, mode="nearest")[index]
            small = small.reshape(b, r, r, 3, size // r, size // r).permute(0, 3, 1, 4, 2, 5)
            pictures.append(small.reshape(b, 3, size, size))
            labels.append(index)
        return torch.cat(pictures), labels

    def rows(self, outputs):
        """The rows that the losses read: of each level its own montages' patches."""
        rows, first = [], 0
        for level, b in enumerate(self.montages):
            rows.append(outputs[3 - level][first : first + b].flatten(0, 1))
            first += b
        return rows

    def targets(self, pictures):
        with torch.no_grad():
            out = F.normalize(self.momentum(pictures)[3][: self.montages[0]].flatten(0, 1), dim=1)
            if torch.distributed.is_initialized():
                all_rows = [torch.empty_like(out) for _ in range(torch.distributed.get_world_size())]
                torch.distributed.all_gather(all_rows, out)
                out = torch.cat(all_rows)
            return out

    def forward(self, views, channels_last=False):
        x = (views.float() - self.mean) / self.std
        (q, labels_q), (k, labels_k) = self.side(x[:, :4]), self.side(x[:, 4:])
        if channels_last:
            q, k = (side.to(memory_format=torch.channels_last) for side in (q, k))
        zq, zk = self.rows(self.online(q)), self.rows(self.online(k))
        tq, tk = self.targets(q), self.targets(k)
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        offset, total = rank * self.montages[0], 0.0
        for level, weight in enumerate(WEIGHTS):
            for z, t, labels in ((zq, tk, labels_q), (zk, tq, labels_k)):
                predicted = F.normalize(self.predictors[level](z[level]).float(), dim=1)
                loss = F.cross_entropy(predicted @ t.float().T, labels[level] + offset)
                total = total + 2 * weight * loss
        return total


class SyncNorm(torch.autograd.Function):
    """Batch norm over the rows of all ranks. PyTorch's own is for GPUs alone; this one is put together from the fastest of
    its parts for CPUs: one gather of (mean, variance, count) forward, one of two vectors backward."""

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, momentum, eps):
        channels, rows = x.shape[1], x.numel() // x.shape[1]
        mean, var = torch.batch_norm_update_stats(x, None, None, momentum)
        own = torch.cat([mean, var, torch.full((1,), float(rows))])
        everyones = torch.empty(torch.distributed.get_world_size() * own.numel())
        torch.distributed.all_gather_into_tensor(everyones, own)
        means, variances, counts = everyones.view(-1, own.numel()).split([channels, channels, 1], dim=1)
        count = counts.sum()
        mean = (means * counts).sum(0) / count
        var = ((variances + (means - mean) ** 2) * counts).sum(0) / count
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * count / (count - 1), momentum)
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps = eps
        return torch.native_batch_norm(x, weight, bias, mean, var, False, momentum, eps)[0]

    @staticmethod
    def backward(ctx, dy):
        x, weight, mean, var, count = ctx.saved_tensors
        w = torch.ones_like(mean) if weight is None else weight
        _, dw, db = torch.ops.aten.native_batch_norm_backward(
            dy, x, w, mean, var, None, None, False, ctx.eps, [False, True, True]
        )
        own = torch.cat([dw, db])
        everyones = torch.empty(torch.distributed.get_world_size() * own.numel())
        torch.distributed.all_gather_into_tensor(everyones, own)
        total = everyones.view(-1, own.numel()).sum(0)
        dy_xhat, dy_mean = (total / count).split(mean.numel())
        inverse = (var + ctx.eps).rsqrt()
        a = inverse * w
        b = -a * inverse * dy_xhat
        c = -a * dy_mean - b * mean
        shape = [1, -1] + [1] * (x.dim() - 2)
        dx = torch.addcmul(c.view(shape), x, b.view(shape)).addcmul_(dy, a.view(shape))
        affine = weight is not None
        return dx, dw if affine else None, db if affine else None, None, None, None, None


def synchronise_norms(model):
    """Every norm of the model forms its statistics over all ranks, as the paper's program does."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.forward = lambda x, m=module: SyncNorm.apply(
                x, m.weight, m.bias, m.running_mean, m.running_var, m.momentum, m.eps
            )


class Lars(torch.optim.Optimizer):
    """LARS with the learning rate inside the momentum buffer; one-dimensional parameters are not adapted."""

    def __init__(self, params, lr=0.5, momentum=0.9, weight_decay=1e-5, eta=1e-3):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                g, local, decay = p.grad, 1.0, 0.0
                if p.dim() > 1:
                    decay = group["weight_decay"]
                    p_norm, g_norm = p.norm(), g.norm()
                    local = group["eta"] * p_norm / (g_norm + decay * p_norm + 1e-12)
                d = g.add(p, alpha=decay).mul(local * group["lr"])
                state = self.state[p]
                buffer = state["buffer"] = d if "buffer" not in state else state["buffer"].mul_(group["momentum"]).add_(d)
                p.sub_(buffer)


@torch.no_grad()
def follow(model, momentum=0.99):
    for k, q in zip(model.momentum.parameters(), model.online.parameters()):
        k.mul_(momentum).add_(q, alpha=1 - momentum)
