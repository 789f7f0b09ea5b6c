"""One meaning a name: no public class or function is defined twice in the package."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import poise

COMMANDS = {
    "audit",
    "demo",
    "evaluate",
    "export",
    "report",
    "train",
}  # of the command line, called as what they do
VERBS = {
    "build",
    "factory",
    "load",
    "read",
    "run",
    "save",
}  # each room's own: poise.data.load, poise.models.load
PLAIN = {
    "Part",
    "Run",
    "Watched",
    "Within",
    "ball",
    "beside",
    "cells",
    "check_room",
    "judge",
    "note",
    "of_images",
    "prepare",
    "whole",
}
ALLOWED = {
    **dict.fromkeys(COMMANDS | VERBS, "see above"),
    **dict.fromkeys(("Affine", "L2", "Linf", "Rows"), "certify: what these do to bounds, by its own files"),
    **dict.fromkeys(("brier", "ece", "nll"), "metrics.certified: the bound of the metric of that name"),
    **dict.fromkeys(
        ("aurc", "auroc", "difference", "number", "share", "standing"), "auditing's own intervals"
    ),
    "ibp": "the bounds, and the defense that trains by them",
    "markdown": "poise.report's, and that of the paper's tables",
    "latex": "poise.report's",
    "Audit": "what poise.audit gives, and the run folder that poise.report reads: both are public",
    "plan": "of an audit, and of the paper's jobs",
    **dict.fromkeys(("Moves", "moves"), "of Square, and of augmented images"),
    **dict.fromkeys(PLAIN, "plain words of two rooms that do not meet"),
}


def test_no_public_name_has_two_definitions():
    places = defaultdict(list)
    for file in Path(poise.__file__).parent.rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                places[node.name].append(file.stem)
    assert len(places) > 300
    twice = {name: found for name, found in places.items() if len(found) > 1 and name not in ALLOWED}
    assert not twice, f"give one of each another name: {twice}"


IRREGULAR = {
    "chosen",
    "drawn",
    "found",
    "given",
    "held",
    "kept",
    "lost",
    "made",
    "seen",
    "shown",
    "taken",
    "told",
}
PARTICIPLES = {
    *("accelerated", "remembered"),  # public
    *("_compared", "fitted"),
    *("_affected", "_audited", "_joined", "_named", "_scaled", "_told"),  # of auditing.auditor, evaluation
    *(
        "_changed",
        "_drawn",
        "_forked",
        "_imported",
        "_lost",
        "_moved",
        "_offered",
        "_tried",
    ),  # of contracts, user_code
}


def test_no_function_is_named_by_a_bare_participle():
    """A function does or gives something: a verb, or the noun of what it gives."""
    found = set()
    for file in Path(poise.__file__).parent.rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef):
                word = node.name.strip("_")
                ends_so = re.fullmatch(r"[a-z]{2,}[^e]ed", word) and word not in ("need", "seed", "speed")
                found |= {node.name} if ends_so or word in IRREGULAR else set()
    assert found <= PARTICIPLES, f"name them by verbs or nouns: {sorted(found - PARTICIPLES)}"
