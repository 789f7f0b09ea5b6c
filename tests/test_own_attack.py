"""An attack that poise knows nothing of but its aim is treated everywhere as what it says it is."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

import poise
from nets import confidence, conv_net, fitted, images, predictions
from poise import InputError
from poise.attacks import ATTACKS, READINGS, Aim, Descent, aim_of, build, run, worst_case
from poise.cli import main
from poise.compat.foolbox import OverBudgets
from poise.compat.torchattacks import Bound
from poise.diagnostics import attack_findings, heading, record_findings
from poise.fast import accelerated
from poise.rules import Always
from poise.threat import Linf

FILE = """
from dataclasses import dataclass
from typing import ClassVar
import torch
from poise.attacks import Aim

@dataclass(frozen=True)
class Surer:
    eps: float = 0.06
    steps: int = 8
    aim: ClassVar[Aim] = Aim(labels="prediction", keeps_label=True, wants="higher")

    def __call__(self, model, x, y=None, *, generator=None):
        y = model(x).argmax(dim=1) if y is None else y
        best = at = x
        for _ in range(self.steps):
            at = at.detach().requires_grad_()
            p = model(at).log_softmax(dim=1).gather(1, y[:, None]).sum()
            step = self.eps / self.steps * torch.autograd.grad(p, at)[0].sign()
            at = (at + step).clamp(0, 1)
        p, before = (model(z).softmax(dim=1) for z in (at, x))
        good = (p.argmax(dim=1) == y) & (p.amax(dim=1) > before.amax(dim=1))
        return torch.where(good[:, None, None, None], at, best).detach()

def surer(*, eps=0.06, steps=8):
    return Surer(eps, steps)

def wrong(model, x, y=None, *, generator=None):
    at = x.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(model(at), y, reduction="sum")
    return (x + 0.3 * torch.autograd.grad(loss, at)[0].sign()).clamp(0, 1)

wrong.aim = Aim(labels="true", keeps_label=False, wants="mislabel")

def silent(model, x, y=None, *, generator=None):
    return x
"""


@pytest.fixture
def own(tmp_path):
    """Names of the two attacks, FILE.py:NAME."""
    file = tmp_path / "own.py"
    file.write_text(FILE)
    return {name: f"{file}:{name}" for name in ("surer", "wrong", "silent")}


def batch():
    net, x = conv_net(0, scale=4.0), images(24, 3)
    y = predictions(net, x)
    return net, x, torch.where(torch.arange(24) % 4 == 0, (y + 1) % 5, y)


def test_its_records_go_where_it_says(own):
    net, x, y = batch()
    surer, wrong = (poise.evaluate(net, [(x, y)], build(own[name])) for name in ("surer", "wrong"))
    assert surer.kept.all()
    assert surer.attacked.amax(dim=1).mean() > surer.clean.amax(dim=1).mean() + 0.02
    right = wrong.correct
    assert wrong.kept[right].double().mean() < 0.9
    p = [probs[torch.arange(len(y)), y] for probs in (wrong.clean, wrong.attacked)]
    assert (p[1] < p[0]).double().mean() > 0.8  # the true labels came to it, not the predictions


def test_diagnostics_take_its_word(own):
    net, x, y = batch()
    clean, right = net(x).detach().softmax(dim=1), predictions(net, x) == y
    assert (heading(build(own["surer"]), clean, right) == 1).all()
    assert heading(build(own["wrong"]), clean, right) is None
    attack = build(own["surer"])
    assert not record_findings({"own": poise.evaluate(net, [(x, y)], attack)}, {"own": attack})
    lowered = poise.evaluate(net, [(x, y)], build("confsmooth", eps=0.06))
    found = [f.kind for f in record_findings({"own": lowered}, {"own": attack})]
    assert found == ["never-improved"]


def test_who_says_nothing_is_not_guessed_at_but_told():
    net, x, y = batch()

    def bare(model, x, y=None, *, generator=None):
        assert y is None
        return x.clone()

    assert aim_of(bare).wants == "unknown"
    assert heading(bare, net(x).softmax(dim=1), predictions(net, x) == y).isnan().all()
    (finding,) = attack_findings(net, bare, x, y, name="bare")
    assert finding.kind == "undeclared-aim" and "poise.attacks.Aim(labels=" in finding.advice
    assert len(poise.evaluate(net, [(x, y)], bare)) == 24
    with pytest.raises(InputError, match=r"poise\.attacks\.Aim"):
        accelerated(bare)
    bare.aim = "lower"
    with pytest.raises(InputError, match="is a str"):
        run(bare, net, x)


def test_an_own_objective_in_a_descent_says_it_too():
    @dataclass(frozen=True)
    class Up:
        wants: ClassVar[str] = "higher"

        def __call__(self, logits, y):
            return -logits.gather(1, y[:, None])[:, 0]

    attack = Descent(objective=Up(), rule=Always(), ball=Linf(0.1), step=0.01, steps=2)
    assert attack.aim == Aim(labels="prediction", keeps_label=False, wants="higher")
    nameless = replace(attack, objective=lambda z, y: z[:, 0])
    assert nameless.aim.wants == "unknown"


def test_the_worst_case_never_rises_with_a_member_that_raises(own):
    net, x, _ = batch()
    top = predictions(net, x)
    members = [build(own["surer"]), build("auto", eps=0.06, steps=5), build(own["wrong"])]
    x_adv = worst_case(members)(net, x)
    assert torch.equal(predictions(net, x_adv), top)
    alone = worst_case(members[1:2])(net, x)
    assert (confidence(net, x_adv, top) <= confidence(net, alone, top) + 1e-6).all()
    with pytest.raises(InputError, match="cannot be split with UserPart"):
        worst_case(members, budget="split")


def test_the_fast_path_lets_each_go_its_way(own):
    net, x, y = batch()
    top = predictions(net, x)
    surer, wrong = (accelerated(build(own[name])) for name in ("surer", "wrong"))
    up = run(surer, net, x, y)
    assert torch.equal(predictions(net, up), top)
    assert confidence(net, up, top).mean() > confidence(net, x, top).mean() + 0.02
    assert (predictions(net, run(wrong, net, x, y)) != top).any()


def test_compat_judges_success_by_what_it_is_for(own):
    net, x, y = batch()
    top = predictions(net, x)
    _, up, success = OverBudgets(name=own["surer"], threshold=0.6)(net, x, y, epsilons=0.06)
    assert torch.equal(success, (predictions(net, up) == top) & (confidence(net, up, top) >= 0.6))
    assert success.any() and OverBudgets(name=own["wrong"]).misclassifies
    plain = build(own["wrong"])
    bound = Bound(net, plain, torch.Generator())
    assert torch.equal(bound(x, y), plain(net, x, y))
    with pytest.raises(InputError, match="threshold"):
        OverBudgets(name="target_confidence")


def test_the_command_line_runs_it_under_its_own_name_and_knows_it_again(own, tmp_path, capsys):
    weights = tmp_path / "lenet.safetensors"
    net = poise.models.load("lenet", classes=10, shape=(1, 8, 8))
    from safetensors.torch import save_file

    save_file(net.state_dict(), weights)
    command = ["evaluate", "--model", "lenet", "--weights", str(weights), "--data", "digits"]
    command += ["--images", "12", "--accelerator", "cpu", "--out", str(tmp_path / "run"), "--attacks"]
    main([*command, own["surer"], own["wrong"]])
    from poise.report import read

    first = {part.name: part for part in read(tmp_path / "run").attacked}
    assert set(first) == {"surer", "wrong"}
    assert "own.py:surer" in first["surer"].attack
    records = first["surer"].records
    assert records.kept.all() and (records.attacked.amax(1) >= records.clean.amax(1) - 1e-6).all()
    capsys.readouterr()
    with (tmp_path / "own.py").open("a") as file:
        file.write("# another file, another attack\n")
    with pytest.raises(SystemExit):
        main([*command, own["surer"]])
    assert "surer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("silent", {}, "does not say what it is for"),
        ("wrong", {"eps": 0.1}, "does not take eps"),
        ("surer", {"queries": 3}, "does not take queries"),
    ],
)
def test_an_own_attack_that_cannot_be_is_refused(own, name, options, said):
    with pytest.raises(InputError, match=said):
        build(own[name], **options)


def test_another_file_is_another_attack(own, tmp_path):
    before = build(own["surer"], eps=0.1)
    assert before == build(own["surer"], eps=0.1) != build(own["surer"], eps=0.2)
    assert before.steps == 8 and repr(before) == repr(build(own["surer"], eps=0.1))
    (tmp_path / "own.py").write_text(FILE + "\n")
    assert repr(before) != repr(build(own["surer"], eps=0.1))


@pytest.mark.parametrize("name", [*ATTACKS, *READINGS])
def test_every_attack_does_what_it_declares(name):
    net, x, y = batch()
    top, attack = predictions(net, x), fitted({**ATTACKS, **READINGS}, name, eps=0.06, steps=8, queries=120)
    aim, right = attack.aim, predictions(net, x) == y
    records = poise.evaluate(net, [(x, y)], attack)
    if aim.keeps_label:
        assert records.kept.all()
    moved = records.attacked[torch.arange(24), top] - records.clean[torch.arange(24), top]
    match aim.wants:
        case "lower":
            assert moved[right].mean() < 0
        case "higher":
            assert moved.mean() > 0
        case "apart":
            assert moved[right].mean() < 0 < moved[~right].mean()
        case "target" if aim.target is not None:
            away = [(p.amax(1) - aim.target).abs().mean() for p in (records.clean, records.attacked)]
            assert away[1] < away[0]
        case "mislabel" if not aim.nearest:
            own = [p[torch.arange(24), y] for p in (records.clean, records.attacked)]
            assert own[1].mean() < own[0].mean()
    given = {label: attack(net, x, y if label == "true" else None) for label in ("true", "prediction")}
    if aim.labels == "true" and not aim.nearest:
        assert not torch.equal(given["true"], given["prediction"])
