"""Fresh environments: each Python that is found, with the lowest and the newest torch that are supported.

Into each goes the wheel without extras; `poise demo`, `poise list` and tests that need no other package run
from it, and it is removed again.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[1]
TORCH = {"lowest": ["torch==2.8.*", "torchvision==0.23.*"], "newest": []}
TESTS = ("equations", "algorithm1", "threat", "linear", "store", "own_attack", "draws", "names")
COLUMNS = (
    *(
        "Python",
        "torch",
        "install, s",
        "GB",
        "of them CUDA",
        "import, s",
        "--help, s",
        "demo, s",
        "list, s",
    ),
    "tests",
)


class Environment:
    """A virtual environment in a folder; what runs in it sees no other packages."""

    def __init__(self, folder, python):
        self.bin = Path(folder, "bin")
        self.around = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.run(python, "-m", "venv", folder)

    def run(self, *words, cwd=None, may_fail=False):
        """Seconds it took, and what it printed; stops where it fails and may not."""
        begun = time.perf_counter()
        done = subprocess.run(
            [*map(str, words)], cwd=cwd, env=self.around, capture_output=True, text=True, check=False
        )
        if done.returncode and not may_fail:
            sys.exit(f"{' '.join(map(str, words))} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
        return time.perf_counter() - begun, done.stdout

    def quickest(self, *words):
        """Seconds, the least of five times."""
        return min(self.run(*words)[0] for _ in range(5))


def gigabytes(folders):
    """Of all files below, as they are stored."""
    files = (file for folder in folders for file in folder.rglob("*") if file.is_file())
    return sum(file.stat().st_size for file in files) / 1e9


def row(python, torch, wheel, folder):
    """The row of one environment, made and left in the folder."""
    env = Environment(folder / "env", python)
    poise, interpreter = env.bin / "poise", env.bin / "python"
    seconds, _ = env.run(interpreter, "-m", "pip", "install", "--quiet", wheel, *TORCH[torch])
    (packages,) = (folder / "env").glob("lib/python*/site-packages")
    size, cuda = gigabytes([packages]), gigabytes([*packages.glob("nvidia*"), packages / "triton"])
    _, version = env.run(interpreter, "-c", "import torch; print(torch.__version__)")
    times = [env.quickest(interpreter, "-c", "import poise"), env.quickest(poise, "--help")]
    times += [env.run(poise, "demo", cwd=folder)[0], env.run(poise, "list")[0]]
    env.run(interpreter, "-m", "pip", "install", "--quiet", "pytest", "hypothesis")
    tests = shutil.copytree(
        ROOT / "tests", folder / "tests"
    )  # away from the sources: the wheel is what is tried
    chosen = [tests / f"test_{name}.py" for name in TESTS]
    _, said = env.run(interpreter, "-m", "pytest", "-q", *chosen, cwd=folder, may_fail=True)
    ended = said.strip().splitlines()[-1].strip("= ")
    figures = [f"{seconds:.0f}", f"{size:.1f}", f"{cuda:.1f}", *(f"{value:.2f}" for value in times)]
    return [Path(python).name.removeprefix("python"), version.strip(), *figures, ended]


def found(version):
    """The path of that Python; None where there is none, or one that does not start (pyenv's shims)."""
    python = shutil.which(f"python{version}")
    works = (
        python and not subprocess.run([python, "--version"], capture_output=True, check=False).returncode
    )
    return python if works else None


def main():
    """Print the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pythons", nargs="+", default=["3.11", "3.12", "3.13"])
    parser.add_argument("--torch", nargs="+", default=[*TORCH], choices=[*TORCH])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        (wheel,) = WheelBuilder(str(ROOT)).build(directory=made, versions=["standard"])
        print(f"{Path(wheel).name}: {Path(wheel).stat().st_size / 1e6:.2f} MB\n")
        print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}", flush=True)
        for version in asked.pythons:
            python = found(version)
            for torch in asked.torch:
                if python is None:
                    cells = [version, torch, "no such Python here: not run"]
                else:
                    with tempfile.TemporaryDirectory() as folder:  # some GB, gone before the next is made
                        cells = row(python, torch, wheel, Path(folder))
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
