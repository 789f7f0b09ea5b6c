"""One thread (small nets are slower on two), the same hypothesis examples in every run, real data."""

import gzip
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("poise", deadline=None, derandomize=True, max_examples=50, database=None)
settings.load_profile("poise")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data that POISE_TEST_DATA names; CI always does, so nothing is skipped there."""
    folder = os.environ.get("POISE_TEST_DATA")
    if folder is None:
        pytest.skip("needs real data: set POISE_TEST_DATA to a folder with mnist/*-ubyte.gz in it")
    if not Path(folder, "mnist").is_dir():
        pytest.fail(f"POISE_TEST_DATA is {folder!r}, and there is no folder mnist in it")
    return Path(folder)


@pytest.fixture(scope="session")
def mnist_root(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root in torchvision's layout: it looks for the unpacked files in ROOT/MNIST/raw."""
    root = tmp_path_factory.mktemp("root")
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for packed in (shared_data / "mnist").glob("*.gz"):
        with gzip.open(packed) as source, (raw / packed.stem).open("wb") as target:
            shutil.copyfileobj(source, target)
    return root
