"""What the documentation shows is run, at tiny size: every block of Python, every command in one of bash.

Plain blocks hold what takes hours, downloads or other machines: their `poise` commands are parsed, not run.
"""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import transformers
from PIL import Image

from nets import images
from poise.attacks import ATTACKS
from poise.auditing import suite
from poise.cli import COMMANDS, main
from poise.cli.parsing import parse
from poise.defenses import DEFENSES

ROOT = Path(__file__).parents[1]
PAGES = {p.relative_to(ROOT).as_posix(): p for p in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))}
BLOCK = re.compile(r'^```(\w*)(?: title="([^"\n]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
TINY = {  # what a command gets in place of its own options, and, with ?, only where it has them
    "train": {"--epochs": "1", "--images": "60", "?--steps": "1", "?--eps-warmup": "1"},
    "evaluate": {"--images": "12", "?--steps": "2"},
    "audit": {"--images": "12"},
}


def blocks(page):
    return [found.groups() for found in BLOCK.finditer(PAGES[page].read_text(encoding="utf-8"))]


def commands(text):
    """The words of each line without its comment; a backslash goes on in the next line."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line.removesuffix("&"), comments=True))]


def shortened(words):
    name, options = words[0], TINY.get(words[0], {})
    kept, given, dropping = [name], set(), False
    for word in words[1:]:
        if word.startswith("--"):
            given.add(word)
            dropping = word in options or f"?{word}" in options
        kept += [word] * (not dropping)
    for option, value in options.items():
        if not option.startswith("?") or option[1:] in given:
            kept += [option.lstrip("?"), value]
    return kept


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    """What the pages take for granted: the runs of `poise demo`, a run, a Hugging Face folder, images."""
    folder = tmp_path_factory.mktemp("kit")
    run = folder / "runs" / "plain"
    main([*shortened(["train", "--model", "lenet", "--data", "digits"]), "--lr", "0.05", "--out", str(run)])
    shutil.copytree(run, folder / "demo" / "train-vanilla")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16,
        patch_size=8, id2label={0: "healthy", 1: "ill"}, label2id={"healthy": 0, "ill": 1},
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(folder / "my-model")
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder / "my-model")
    for kind in ("healthy", "ill"):
        (folder / "scans" / "test" / kind).mkdir(parents=True)
        for i, image in enumerate((images(12, len(kind), shape=(16, 16, 3)) * 255).byte()):
            Image.fromarray(image.numpy()).save(folder / "scans" / "test" / kind / f"{i}.png")
    return folder


@pytest.fixture
def tiny(monkeypatch):
    for name in suite.SIZES:
        size = suite.Size(images=8, steps=2, queries=4, tries=1, longer=2)
        monkeypatch.setitem(suite.SIZES, name, size)


@pytest.mark.parametrize("page", PAGES)
def test_its_blocks_run(page, kit, tiny, tmp_path, monkeypatch):
    here = shutil.copytree(kit, tmp_path / "here")
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(str(here))
    names = {}
    for language, title, text in blocks(page):
        if language == "python":
            if title:
                Path(title).write_text(text, encoding="utf-8")
            exec(compile(text, f"{page}, {title or 'a block'}", "exec"), names)
        elif language == "bash":
            for first, *words in commands(text):
                assert first == "poise", (
                    f"{page}: a block of bash holds commands of poise alone, not {first}"
                )
                main(shortened(words))


@pytest.mark.parametrize("page", PAGES)
def test_its_other_commands_are_parsed(page):
    for language, _, text in blocks(page):
        lines = commands(text) if language in ("", "text") else []
        for words in (words[1:] for words in lines if words[0] == "poise"):
            if not {"$", "["} & {word[0] for word in words}:
                assert callable(parse(COMMANDS, words, description=""))


def test_readme_links_to_what_is_there():
    links = LINK.findall(PAGES["README.md"].read_text(encoding="utf-8"))
    assert len(links) > 5 and all((ROOT / link).exists() for link in links)


def test_readme_has_every_attack_and_defense():
    listed = set(
        re.findall(r"`([\w-]+)`", "".join(re.findall(r"^\| `.*?\|", PAGES["README.md"].read_text(), re.M)))
    )
    assert listed == {*ATTACKS, *DEFENSES}
