"""Options that an attack does not have are refused by name; minimal-norm attacks get no L∞ budget."""

import json

import pytest
import torch

from poise import InputError, attacks, defenses
from poise.cli import main
from poise.report import read
from poise.training import TrainJob, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from poise import data

    out = tmp_path_factory.mktemp("options") / "run"
    images = data.load("digits", split="train")
    train(
        TrainJob(data="digits", model="lenet", defense="vanilla", epochs=5, lr=0.05, batch_size=32),
        images,
        defenses.vanilla(),
        out,
    )
    return out


def evaluate(trained, out, *args):
    main(
        [
            "evaluate",
            "--model",
            str(trained),
            "--data",
            "digits",
            "--images",
            "20",
            "--out",
            str(out),
            "--attacks",
            *map(str, args),
        ]
    )


def refusal(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        evaluate(*args)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


UNTAKEN = [
    ("square", {"steps": 5}, "does not take steps: it takes eps=0.03, queries=1000"),
    ("auto", {"step": 0.01}, "does not take step"),
    ("auto", {"keep": "last"}, "does not take keep"),
    ("cw", {"norm": "linf"}, "does not take norm"),
    ("fgsm", {"steps": 5, "step": 0.1}, "does not take steps and step"),
    ("ace", {"keep_fraction": 0.5}, "does not take keep_fraction"),
]


@pytest.mark.parametrize(("name", "options", "words"), UNTAKEN, ids=str)
def test_an_option_that_an_attack_does_not_have_is_refused(name, options, words):
    with pytest.raises(InputError, match=f"attack '{name}' {words}"):
        attacks.build(name, **options)
    assert attacks.build(name, **dict.fromkeys(options)) == attacks.ATTACKS[name]()  # None is no option


@pytest.mark.parametrize(
    "flags",
    [
        ("square", "--steps", 5),
        ("pgd", "auto", "--step", 0.01),
        ("auto", "--keep", "best"),
        ("cw", "--norm", "linf"),
        ("pgd", "cw", "--norm", "l2"),
        ("fgsm", "pgd", "--steps", 3),
    ],
)
def test_the_command_line_refuses_it_before_anything_is_made(flags, trained, tmp_path, capsys):
    error = refusal(capsys, trained, tmp_path / "out", *flags)
    assert f"does not take {flags[-2]}: it takes" in error
    assert not (tmp_path / "out").exists()


def test_the_way_out_of_the_refusal_works(trained, tmp_path, capsys):
    error = refusal(capsys, trained, tmp_path / "no", "pgd", "square", "--steps", 3)
    assert "--option pgd.NAME=VALUE is for pgd alone" in error
    evaluate(
        trained,
        tmp_path / "out",
        "pgd",
        "square",
        "--option",
        "pgd.steps=3",
        "square.queries=40",
        "--eps",
        0.125,
    )
    jobs = {
        n: json.loads((tmp_path / "out" / n / "job.json").read_text())["job"]["attack"]
        for n in ("pgd", "square")
    }
    assert jobs["pgd"] == repr(attacks.pgd(eps=0.125, steps=3))
    assert jobs["square"] == repr(attacks.square(eps=0.125, queries=40))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("pgd.queries=3", "unknown option 'queries=3'"),
        ("auto.steps=3", "is for none of pgd"),
        ("steps=3", "is for none of pgd"),
        ("pdg.steps=3", "did you mean pgd"),
    ],
)
def test_an_option_of_nobody_is_refused(option, words, trained, tmp_path, capsys):
    assert words in refusal(capsys, trained, tmp_path / "out", "pgd", "--option", option)


@pytest.mark.parametrize("flags", [(), ("--eps", 0.05)])
def test_beside_others_minimal_norm_attacks_get_no_budget(flags, trained, tmp_path, capsys):
    out = tmp_path / "out"
    evaluate(trained, out, "deepfool", "pgd", *flags)
    assert ("--option deepfool.eps=NUMBER" in capsys.readouterr().out) == bool(flags)
    deep = next(part.records for part in read(out).attacked if part.name == "deepfool")
    right = deep.clean.argmax(dim=1) == deep.y
    assert right.sum() > 10
    assert (
        deep.attacked.argmax(dim=1)[right] != deep.y[right]
    ).all()  # accuracy .00, not that of .05 in L2
    assert float(deep.l2.max()) > 0.05


def test_alone_they_take_a_budget_in_their_own_norm(trained, tmp_path):
    evaluate(trained, tmp_path / "out", "deepfool", "--eps", 0.3)
    [part] = read(tmp_path / "out").attacked
    assert 0 < float(part.records.l2.max()) <= 0.3
    assert torch.equal(part.records.kept, part.records.l2 == 0)


def test_a_defense_s_unknown_option_is_refused_too():
    with pytest.raises(InputError, match="defense 'vanilla' does not take eps: it takes no options"):
        defenses.build("vanilla", eps=0.1)
