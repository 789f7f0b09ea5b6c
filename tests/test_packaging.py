"""What is handed out: a wheel of the package alone, an archive that can be tested, one version."""

import email
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

import poise

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    (made,) = WheelBuilder(str(ROOT)).build(
        directory=str(tmp_path_factory.mktemp("wheel")), versions=["standard"]
    )
    with zipfile.ZipFile(made) as archive:
        yield archive


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    (made,) = SdistBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("sdist")))
    with tarfile.open(made) as archive:
        yield {name.partition("/")[2] for name in archive.getnames()}


@pytest.fixture(scope="module")
def metadata(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(wheel.read(name))


def _tree(folder):
    return {
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / folder).rglob("*")
        if p.is_file() and p.suffix != ".pyc"
    }


def test_the_wheel_holds_the_package_whole_and_nothing_else(wheel):
    inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert inside == {name.removeprefix("src/") for name in _tree("src/poise")}
    assert {"poise/py.typed", "poise/auditing/templates/page.html", "poise/paper/published.csv"} <= inside
    extra = {name.partition("/")[2] for name in wheel.namelist() if ".dist-info/" in name}
    assert extra == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}


def test_the_source_archive_can_be_built_tested_and_read(source):
    assert {
        "pyproject.toml",
        "constraints.txt",
        "Makefile",
        "LICENSE",
        "CHANGELOG.md",
        "CITATION.cff",
        "PKG-INFO",
    } <= source
    assert _tree("src/poise") | _tree("tests") | _tree("docs") | _tree("benchmarks") <= source


def test_the_source_archive_holds_no_leavings(source):
    tops = {name.partition("/")[0] for name in source}
    assert not tops & {".venv", ".git", ".ci", "build", "dist", "site", "demo", "runs", "data", "report"}
    assert not [name for name in source if name.endswith((".pyc", ".safetensors", ".pt"))]


def test_one_version_everywhere(metadata):
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert poise.__version__ == "0.2.0" == cited["version"] == metadata["Version"]


def test_the_metadata_says_what_an_index_shows(metadata):
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload(decode=True) == (ROOT / "README.md").read_bytes()
    assert metadata["Requires-Python"] == ">=3.11" and metadata["License-Expression"] == "Apache-2.0"
    assert {"hf", "timm", "onnx", "robustbench", "docs", "dev"} <= set(metadata.get_all("Provides-Extra"))
    pythons = [line.split(" :: ")[-1] for line in metadata.get_all("Classifier") if "Python :: 3." in line]
    assert pythons == ["3.11", "3.12", "3.13"]


def test_installing_without_extras_asks_for_no_hub_and_no_test_tools(metadata):
    needs = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    names = {line.split(">")[0].split("<")[0] for line in needs}
    assert {"torch", "torchvision", "tyro"} <= names
    assert not names & {"transformers", "datasets", "timm", "pytest", "mkdocs-material", "hypothesis"}
