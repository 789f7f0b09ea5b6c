"""Train a net on a folder of images with UAT-Smooth, and attack it and a plain one.

    python examples/train_uat.py photos --model resnet18 --size 64 --epochs 20

`photos` holds the folders train and test, each with a folder of images a class.
"""

import argparse
from pathlib import Path

import poise
from poise.progress import bars
from poise.training import TrainJob


def main(argv: list[str] | None = None) -> dict[str, poise.Records]:
    """Train both nets, attack both, and print the mean confidence before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("photos", help="folder with the folders train and test")
    parser.add_argument("--model", default="lenet")
    parser.add_argument("--size", type=int, default=32, help="pixels a side")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--eps", type=float, default=8 / 255)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    args = parser.parse_args(argv)

    name, preparation = f"folder:{args.photos}", poise.data.Preparation(size=args.size)
    train = poise.data.load(name, split="train", preparation=preparation)
    test = poise.data.load(name, split="test", preparation=preparation)
    attack = poise.attacks.confsmooth(eps=args.eps)
    records = {}
    for defense in ("vanilla", "uat-smooth"):
        options = {} if defense == "vanilla" else {"eps": args.eps}
        job = TrainJob(data=name, model=args.model, defense=defense, epochs=args.epochs, lr=args.lr)
        chosen = poise.defenses.build(defense, **options)
        with bars() as progress:
            net = poise.train(job, train, chosen, args.out / defense, progress=progress)
        found = records[defense] = poise.evaluate(net, test, attack)
        before, after = (poise.metrics.confidence(probs) for probs in (found.clean, found.attacked))
        right = poise.metrics.accuracy(found.clean, found.y)
        print(f"{defense}: accuracy {right:.3f}, confidence {before:.3f}, under attack {after:.3f}")
    return records


if __name__ == "__main__":
    main()
