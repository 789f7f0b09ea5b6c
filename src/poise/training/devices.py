"""Several devices: who takes which images, and how gradients meet.

Gradients are summed once a step, after the last backward pass, in one flat tensor. DDP gives the same
numbers (benchmarks/gradients.py compares them) but asks more of a defense than that it is a loss, and a
user's own has the same rights: the gradients of a pass in evaluation mode, which is how attacks ask, would
stay unshared without a word, and weights that a loss does not use are refused. Every process would also
need an image in every step, where the last batch may have fewer than there are processes. BatchNorm
normalises each device's share by that share's own statistics, as with DDP; the running ones are averaged
after every step, so that all hold the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from poise.checks import InputError, check_choice
from poise.devices import fabric_of
from poise.shapes import Images, Logits
from poise.train_job import TrainJob

TOGETHER = 16  # steps after which several processes ask one another whether to go on


def fabric_for(
    job: TrainJob,
    *,
    devices: int | None = None,
    nodes: int | None = None,
    strategy: str = "auto",
    accelerator: str = "auto",
) -> Fabric:
    """A Fabric for the job: one device, or several by one process each.

    Args:
        job: its precision counts.
        devices: processes a node, one a GPU; None takes what torchrun says, else 1.
        nodes: machines; None takes what torchrun says, else 1. Under SLURM give both numbers as in
            the batch script, and start with srun.
        strategy: "auto" or one of Lightning's DDP strategies, which start the processes.
        accelerator: "auto", "cpu", "cuda" ...

    Raises:
        InputError: a strategy that shards the weights, or devices that are not there.
    """
    check_choice("strategy", strategy, ("auto", "ddp", "ddp_spawn", "ddp_fork", "ddp_notebook"))
    return fabric_of(
        devices=devices,
        nodes=nodes,
        strategy=strategy,
        accelerator=accelerator,
        precision=job.precision,
    )


def check_fabric(fabric: Fabric, job: TrainJob) -> None:
    """Refuse a Fabric of another precision than the job says it was trained in."""
    precision = str(fabric.strategy.precision.precision)
    if precision == job.precision:
        return
    if job.precision == "16-mixed" and fabric.device.type == "cpu":
        raise InputError("precision='16-mixed' needs a GPU: on the CPU take 'bf16-mixed' or '32-true'")
    raise InputError(
        f"the Fabric's precision is {precision!r}, the job's {job.precision!r}: give both the same"
    )


class InPrecision(nn.Module):
    """The net in the Fabric's precision, logits in float32.

    Each forward has an autocast of its own: a longer one would keep weights that an attack cast
    without gradients, and hand them to the pass that trains.
    """

    def __init__(self, net: nn.Module, fabric: Fabric) -> None:
        super().__init__()
        self.net = net
        self._autocast = fabric.autocast

    def forward(self, x: Images) -> Logits:
        with self._autocast():
            logits: Logits = self.net(x)
        return logits.float()


def shares(images: int, fabric: Fabric, parts: int) -> Iterator[slice]:
    """The parts of a batch that fall to one process, none empty; together the processes take all images.

    Every k-th image goes to the same part, so that the parts are as equal as can be.
    """
    stride = fabric.world_size * parts
    for part in range(parts):
        if (first := part * fabric.world_size + fabric.global_rank) < images:
            yield slice(first, images, stride)


@torch.no_grad()
def sum_gradients(fabric: Fabric, net: nn.Module, weight: float) -> None:
    """Sum the gradients of all processes, and average the running statistics by their shares."""
    if fabric.world_size == 1:
        return
    trained = [p for p in net.parameters() if p.requires_grad]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    running = [b for b in net.buffers() if b.is_floating_point()]
    flat = torch.cat([t.float().flatten() for t in (*grads, *(b * weight for b in running))])
    torch.distributed.all_reduce(flat)
    pieces = iter(torch.split(flat, [t.numel() for t in (*grads, *running)]))
    for parameter, grad in zip(trained, grads, strict=True):
        grad.copy_(next(pieces).reshape(grad.shape))
        parameter.grad = grad
    for buffer in running:
        buffer.copy_(next(pieces).reshape(buffer.shape))


def agree(fabric: Fabric, code: int, step: int = 0) -> int:
    """The highest code of all processes, which leave the loop at the same step.

    One process has its way at once; several ask one another at every 16th step of an epoch, because
    each must wait for the others' answers.
    """
    if fabric.world_size == 1:
        return code
    return int(reduce(fabric, torch.tensor(float(code)), "max")) if step % TOGETHER == 0 else 0


def reduce(fabric: Fabric, value: Tensor, how: str = "sum") -> Tensor:
    """A tensor's sum over the processes, or its maximum."""
    if fabric.world_size == 1:
        return value
    total = fabric.all_reduce(value.to(fabric.device), reduce_op=how)
    assert isinstance(total, Tensor)
    return total
