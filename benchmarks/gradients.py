"""How the gradients of several processes meet: one sum after the last backward pass, or PyTorch's DDP.

    python benchmarks/gradients.py [--device cuda] [--rounds 5]

Two processes take half a batch each. By the sum, a defense is handed the bare net and the gradients are
added up after it. By DDP it is handed a module that sends passes in training mode through the wrapper, all
others (attacks) to the bare net. First what comes out, against the mean of the two halves' gradients in one
process: the largest difference, relative to the largest gradient, or what the wrapper says; then seconds a
step, the shortest of the rounds, interleaved.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from poise import defenses, models
from poise.modes import evaluating
from poise.training import devices

OPTIONS = {"ccat": {"steps": 3}, "vanilla": {}}


class Wrapped(nn.Module):
    """The net as a defense sees it under DDP."""

    def __init__(self, net, **options):
        super().__init__()
        self.net = net
        self.wrapped = DistributedDataParallel(net, broadcast_buffers=False, **options)

    def forward(self, x):
        return self.wrapped(x) if self.training and torch.is_grad_enabled() else self.net(x)


class World:
    """What `devices.sum_gradients` asks of a Fabric."""

    world_size = 2


def twice(model, x, y, generator=None):
    """A loss of two passes, each with its gradient."""
    return F.cross_entropy(model(x), y) + F.cross_entropy(model(1 - x), y)


def settled(model, x, y, generator=None):
    """A loss of a net in evaluation mode, as for fine-tuning with frozen statistics."""
    with evaluating(model):
        return F.cross_entropy(model(x), y)


def penalised(model, x, y, generator=None):
    """A loss with the gradient's length, by double backward."""
    loss = F.cross_entropy(model(x), y)
    (grad,) = torch.autograd.grad(loss, [next(model.parameters())], create_graph=True)
    return loss + grad.square().sum()


class Spare(nn.Module):
    """A net with weights that its answers do not use, as of an auxiliary head."""

    def __init__(self):
        super().__init__()
        self.net, self.spare = models.load("lenet", shape=(1, 8, 8)), nn.Linear(2, 2)

    def forward(self, x):
        return self.net(x)


def grads(net):
    """Every gradient in one line of numbers."""
    flat = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in net.parameters()]
    return torch.cat(flat).double()


def build(name, net):
    """A fresh net with the same weights in every process."""
    torch.manual_seed(0)
    return Spare() if net == "spare" else models.load(net, shape=(1, 8, 8)).train()


def step(defense, model, x, y, *, scale):
    """Two steps' gradients are summed up: the second is where DDP would notice what the first left."""
    for turn in range(2):
        loss = defense(model, x, y, torch.Generator().manual_seed(turn)) * scale
        model.zero_grad()
        loss.backward()


def outcome(defense, net, rank):
    """The difference of the sum and of DDP from one process that takes both halves, or what was raised."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(32, 1, 8, 8, generator=generator), torch.arange(32) % 10
    expected = 0
    for half in range(2):
        alone = build("lenet", net)
        step(defense, alone, x[half::2], y[half::2], scale=0.5)
        expected = expected + grads(alone)
    found = []
    for wrap in (False, True):
        model = build("lenet", net)
        seen = Wrapped(model) if wrap else model
        try:
            step(defense, seen, x[rank::2], y[rank::2], scale=1.0 if wrap else 0.5)
            if not wrap:
                devices.sum_gradients(World, model, 0.5)
            found.append(f"{float((grads(model) - expected).abs().max() / expected.abs().max()):.1e}")
        except RuntimeError as error:
            found.append(str(error).partition(".")[0][:60])
    return found


def seconds(defense, device, rounds, rank):
    """The shortest time of a step of ResNet-18 on 16 images a process, by the sum and by DDP."""
    x, y = torch.rand(16, 3, 32, 32, device=device), torch.arange(16, device=device) % 10
    torch.manual_seed(0)
    nets = [models.load("resnet18", shape=(3, 32, 32)).train().to(device) for _ in range(2)]
    seen = [nets[0], Wrapped(nets[1])]
    shortest = [float("inf")] * 2
    for _ in range(rounds):
        for way in range(2):
            torch.distributed.barrier()
            began = time.perf_counter()
            seen[way].zero_grad()
            defense(seen[way], x, y, torch.Generator().manual_seed(0)).backward()
            if way == 0:
                devices.sum_gradients(World, nets[0], 0.5)
            if device == "cuda":
                torch.cuda.synchronize()
            shortest[way] = min(shortest[way], time.perf_counter() - began)
    return shortest


def work(rank, device, rounds):
    """What each process does."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", "tcp://127.0.0.1:29541", rank=rank, world_size=2)
    known = {name: defenses.build(name, **OPTIONS.get(name, {})) for name in defenses.DEFENSES}
    own = {"two passes": twice, "evaluation mode": settled, "double backward": penalised}
    for name, defense in {**known, **own, "unused weights": defenses.vanilla()}.items():
        found = outcome(defense, "spare" if name == "unused weights" else "lenet", rank)
        if rank == 0:
            print(f"{name:18s} sum {found[0]:10s} DDP {found[1]}", flush=True)
    for name in ("vanilla", "at"):
        by_sum, by_ddp = seconds(known[name], device, rounds, rank)
        if rank == 0:
            print(f"{name:18s} sum {by_sum:.4f} s   DDP {by_ddp:.4f} s   on {device}", flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.multiprocessing.spawn(work, args=(options.device, options.rounds), nprocs=2)
