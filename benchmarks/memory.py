"""Peak memory of evaluate at 224 x 224 RGB: it must not grow with the number of images.

python benchmarks/memory.py --images 200 1600

In a process of its own with the allocator as users have it: no MALLOC_ variables, so that evaluate sets it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator


def measure(counts: list[int], batch: int) -> None:
    """Print what this process needed before the first image, and at most after so many."""
    import torch
    from torch import Tensor, nn

    import poise

    torch.set_num_threads(1)
    done, peaks = 0, {"before": _peak()}

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for start in range(0, max(counts), batch):
            n = min(batch, max(counts) - start)
            yield torch.rand(n, 3, 224, 224, generator=generator), torch.arange(n) % 5

    def on_batch(images: int) -> None:
        nonlocal done
        peaks.update({str(n): _peak() for n in counts if done < n <= done + images})
        done += images

    layers = (nn.Conv2d(3, 4, 7, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    net = nn.Sequential(*layers).eval()
    poise.evaluate(net, batches(), poise.attacks.pgd(steps=1), on_batch=on_batch)
    print(json.dumps(peaks))


def _peak() -> float:
    """The most memory that this process has had so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peaks(counts: list[int], batch: int = 16) -> dict[str, float]:
    """What `measure` says in a process of its own, with the allocator as users have it."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    numbers = [str(n) for n in counts]
    command = [sys.executable, __file__, "--worker", "--batch", str(batch), "--images", *numbers]
    said = subprocess.run(command, env=clean, capture_output=True, text=True, check=True).stdout
    found: dict[str, float] = json.loads(said)
    return found


def main() -> None:
    """Print a line for each number of images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[200, 1600])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        measure(args.images, args.batch)
        return
    for images, most in peaks(args.images, args.batch).items():
        print(f"{images:>6} images: {most:.0f} MiB at most")


if __name__ == "__main__":
    main()
