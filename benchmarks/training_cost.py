"""What a training step costs with each defense, relative to AT with 10 inner steps, interleaved.

    python benchmarks/training_cost.py [--rounds 6] [--nets lenet resnet18]

As in overhead.py: every contender trains its own copy of the net in its own thread and hands the turn on
at every forward; a turn's time is its thread's processor time, a contender's the sum of the shortest that
any round took. CCAT has its cited 40 inner steps.
"""

import argparse

import torch
from overhead import NETS, keep_memory, one_round, ratios, rolled

from poise import defenses

STEPS = 2


def training(name, **options):
    """Two steps of SGD with the defense."""
    defense = defenses.build(name, **options)

    def train(model, x):
        model.train()
        y = torch.arange(len(x)) % 10
        sgd = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=5e-4, nesterov=True)
        for step in range(STEPS):
            loss = defense(model, x, y, torch.Generator().manual_seed(step))
            sgd.zero_grad()
            loss.backward()
            sgd.step()

    return train


CONTENDERS = {"floor": training("at"), "at-5": training("at", steps=5)} | {
    name: training(name) for name in defenses.DEFENSES if name != "at"
}


def main():
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6, help="2 or more")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=["lenet", "resnet18"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    for name in options.nets:
        torch.manual_seed(0)
        net, x = NETS[name]()
        one_round(net, x, CONTENDERS)  # warm
        rounds = [one_round(net, x, rolled(CONTENDERS, i)) for i in range(options.rounds)]
        found, floor = ratios(rounds)
        halves = ratios(rounds[::2])[0], ratios(rounds[1::2])[0]
        print(f"{name}, batch {len(x)}: AT-10 {floor / STEPS:.3f} s a step, {options.rounds} rounds")
        print(f"  {'':20s}    calls a step   / AT-10   range")
        for contender in CONTENDERS:
            low, high = sorted(half[contender] for half in halves)
            forwards = (len(rounds[0][contender]) - 1) / STEPS
            label = "at-10" if contender == "floor" else contender
            print(f"  {label:20s} {forwards:15.1f}   {found[contender]:7.3f}   [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    main()
