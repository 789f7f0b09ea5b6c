"""How many trusted answers of a Hugging Face model stay trusted in the worst case.

    python examples/audit_vit.py google/vit-base-patch16-224 photos --threshold 0.8

`photos` holds a folder of images a class, named as the model names its classes.
"""

import argparse

import poise
from poise.auditing.outcome import Audit
from poise.progress import bars


def main(argv: list[str] | None = None) -> Audit:
    """Audit the model of the command line, print the verdict and leave the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="name on the Hub, or a folder")
    parser.add_argument("photos", help="folder of images, a folder a class")
    parser.add_argument("--threshold", type=float, default=0.8, help="confidence to trust an answer from")
    parser.add_argument("--images", type=int, help="attack so many")
    parser.add_argument("--out", default="audit")
    args = parser.parse_args(argv)

    name = f"hf/{args.model}"
    data = poise.data.load(f"folder:{args.photos}", preparation=poise.models.preparation(name))
    with bars() as progress:
        found = poise.audit(
            name,
            data,
            threshold=args.threshold,
            eps=[1 / 255, 4 / 255],
            images=args.images,
            out=args.out,
            progress=progress,
        )
    print(found.verdict)
    print(f"page: {args.out}/audit.html")
    return found


if __name__ == "__main__":
    main()
