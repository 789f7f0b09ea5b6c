"""Which of two nets holds more of its trusted answers, on grounds that a change of scale cannot win.

    python examples/compare_nets.py runs/vanilla runs/uat-smooth folder:photos --eps 0.03

Raw confidences are a matter of scale: logits times ten look robust. So both nets are also scaled to their
least held-out NLL, and to one clean confidence, and attacked again.
"""

import argparse

import poise
from poise.auditing.outcome import Audit


def main(argv: list[str] | None = None) -> Audit:
    """Audit both nets on the same images, and print the verdict and each pair's numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("first", help="run folder")
    parser.add_argument("second", help="run folder")
    parser.add_argument("data", help="what `poise list` names, or folder:PATH")
    parser.add_argument("--eps", type=float, default=8 / 255)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--out", default="audit")
    args = parser.parse_args(argv)

    nets = {name: poise.load(name) for name in (args.first, args.second)}
    data = poise.data.load(args.data, preparation=nets[args.first].preparation)
    found = poise.audit(nets, data, eps=args.eps, images=args.images, out=args.out)
    print(found.verdict)
    for pair in found.pairs:
        one, other = (kept.estimate for kept in pair.kept)
        print(f"{pair.grounds}: they keep {one:.3f} and {other:.3f} of their trusted answers")
    return found


if __name__ == "__main__":
    main()
