"""Whether two versions of poise compute the same: a hash of every result under fixed seeds.

Run it with each version first on the path, and compare the two files it writes:

    PYTHONPATH=OLD/src python benchmarks/bit_equal.py old.txt
    PYTHONPATH=NEW/src python benchmarks/bit_equal.py new.txt
    diff old.txt new.txt

Only what stays from version to version is called: the tables of attacks, `evaluate`, the command line.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from dataclasses import fields
from pathlib import Path

import torch

import poise

DEFENSES = {
    "vanilla": [],
    "at": ["--steps", "3"],
    "uat-smooth": ["--steps", "3"],
    "trades": ["--steps", "3"],
}


def nets() -> dict[str, tuple[torch.nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]]:
    """Two nets with weights drawn by a seed, each with the digits that it is attacked on."""
    data = poise.data.load("digits", split="test", images=24, seed=0, batch_size=16)
    found = {}
    for name in ("lenet", "resnet18"):
        torch.manual_seed(0)
        net = poise.models.load(name, classes=10, shape=data.shape)
        with torch.no_grad():
            poise.models.head(net)[1].weight.mul_(20)  # sure enough for there to be something to lower
        found[name] = (net, list(data))
    return found


def digest(*tensors: torch.Tensor) -> str:
    """The hash of all bytes."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def command(*words: str) -> None:
    """Run poise, quietly."""
    subprocess.run([sys.executable, "-m", "poise", *words], check=True, capture_output=True)


def main(file: str) -> None:
    """Write a line a result: what it is, and its hash."""
    torch.set_num_threads(1)
    lines = []
    for net_name, (net, batches) in nets().items():
        for name, factory in poise.attacks.ATTACKS.items():
            attack = factory(queries=60) if "square" in name else factory()
            records = poise.evaluate(net, batches, attack, seed=3)
            for f in fields(records):
                if isinstance(value := getattr(records, f.name), torch.Tensor):
                    lines.append(f"{net_name} {name} {f.name} {digest(value)}")
    with tempfile.TemporaryDirectory() as folder:
        for name, options in DEFENSES.items():
            out = Path(folder, name)
            words = ["train", "--data", "digits", "--defense", name, *options, "--images", "300"]
            command(*words, "--epochs", "2", "--lr", "0.05", "--out", str(out))
            state = poise.load(out).state_dict()
            lines.append(f"defense {name} {digest(*(state[key] for key in sorted(state)))}")
        command("reproduce", "all", "--scale", "tiny", "--out", f"{folder}/paper")
        for table in sorted(Path(folder, "paper").rglob("*.csv")):
            lines.append(f"reproduce {table.name} {hashlib.sha256(table.read_bytes()).hexdigest()[:16]}")
    Path(file).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
