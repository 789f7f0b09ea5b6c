"""Each defect is found, with its share; healthy nets under every attack give no finding."""

import copy
import dataclasses
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nets import Counting, conv_net, fitted, images, predictions
from poise import InputError, evaluate
from poise.attacks import (
    ATTACKS,
    ace,
    adaptive,
    auto,
    build,
    confsmooth,
    dropout,
    dropout_accumulated,
    overconfidence,
    pgd,
    random_confidence,
    square_overconfidence,
    square_underconfidence,
    target_confidence,
    worst_case,
)
from poise.diagnostics import (
    attack_findings,
    diagnose,
    gradient_free,
    heading,
    model_findings,
    record_findings,
)
from poise.records import Records

HEALTHY = [  # the first with as many queries as could bring a search ahead of the gradients
    (0, 5, 10.0, torch.float32, 200),
    (1, 2, 30.0, torch.float32, 40),
    (2, 10, 2.0, torch.float32, 40),
    (3, 3, 30.0, torch.float64, 40),
]
# Steps short enough that an attack without a step rule meets points that keep the label.
HOW = {"eps": 0.06, "step": 0.002, "steps": 15, "keep": "best"}


def kinds(found):
    return [finding.kind for finding in found]


def only(found):
    (finding,) = found
    return finding


def labelled(net, n, dtype=torch.float32):
    """Images and labels, every fourth label another than the prediction."""
    x = images(n, 10, dtype=dtype)
    y, classes = predictions(net, x), net(x[:1]).shape[1]
    y[::4] = (y[::4] + 1) % classes
    return x, y


@pytest.mark.parametrize(("seed", "classes", "scale", "dtype", "queries"), HEALTHY)
def test_healthy_nets_give_no_finding_under_any_attack(seed, classes, scale, dtype, queries):
    net = conv_net(seed, classes=classes, scale=scale, dtype=dtype)
    x, y = labelled(net, 24, dtype)
    attacks = {name: fitted(ATTACKS, name, **HOW, queries=queries) for name in ATTACKS}
    records = {name: evaluate(net, [(x, y)], attack) for name, attack in attacks.items()}
    assert diagnose(net, attacks, x, y, records=records) == ()
    # Nor is black-box ahead of any one of these; of ACE, with its one gradient, it often is.
    for name in ("auto", "confsmooth", "overconfidence", "max_miscalibration"):
        others = {key: seen for key, seen in records.items() if key.startswith("square_")}
        assert record_findings({name: records[name], **others}, attacks) == ()


def test_a_step_too_long_for_a_healthy_net_is_found_in_the_records():
    net = conv_net(scale=30.0)
    x, y = labelled(net, 24)
    for keep, kind in (("best", "never-improved"), ("last", "lost-label")):
        attacks = {"dropout": dropout_accumulated(eps=0.15, step=0.1, keep_fraction=0.95, keep=keep)}
        records = {"dropout": evaluate(net, [(x, y)], attacks["dropout"])}
        finding = only(diagnose(net, attacks, x, y, records=records))
        assert finding.kind == kind and finding.share > 0.5


# --- 1. gradients -------------------------------------------------------------------------------


class Pixels(nn.Module):
    """Three classes, z = (scale · x_0, 0, −scale · x_0): the lead is scale · x_0."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        z = self.scale * x.flatten(1)[:, 0]
        return torch.stack([z, 0 * z, -z], dim=1)


def pixels(*rows):
    return torch.tensor(rows).reshape(len(rows), 1, 1, -1)


GAP_LIKE = [adaptive(), dropout(), pgd(), ace(), pgd(random_start=True, restarts=2, step=0.01)]


@pytest.mark.parametrize("attack", GAP_LIKE, ids=lambda attack: type(attack).__name__)
def test_a_saturated_softmax_gives_no_gradient_and_the_share_is_told(attack):
    x = pixels([0.9], [0.8], [0.7], [0.002])  # leads of 900, 800, 700 and 2 logits
    finding = only(attack_findings(Pixels(1000.0), attack, x, name="it"))
    assert (finding.kind, finding.attack, finding.share) == ("vanished-gradient", "it", 0.75)
    assert finding.seen.startswith("75.0% of the images") and "confsmooth" in finding.advice


@pytest.mark.parametrize("attack", [auto(), confsmooth(), target_confidence(), overconfidence()])
def test_attacks_whose_gradient_does_not_vanish_and_those_with_nothing_left_to_do_are_not_blamed(attack):
    assert attack_findings(Pixels(1000.0), attack, pixels([0.9], [0.8])) == ()


def test_what_float32_cannot_tell_from_zero_float64_can():
    x = pixels([0.5])  # a lead of 25: the gap's gradient is about 50·exp(−25) · 2 = 1e-9
    assert kinds(attack_findings(Pixels(50.0), adaptive(), x)) == ["vanished-gradient"]
    assert attack_findings(Pixels(50.0), adaptive(), x.double()) == ()
    assert attack_findings(Pixels(20.0), adaptive(), x) == ()  # a lead of 10: 20·exp(−10) · 2 = 2e-3


def test_a_saturated_net_is_found_for_many_shapes_of_attack():
    net = conv_net(scale=1e6)
    x, y = labelled(net, 8)
    for attack in (adaptive(), dropout(), pgd(), worst_case([adaptive(), dropout()])):
        finding = only(attack_findings(net, attack, x, None if attack.uses_labels else y))
        assert finding.kind == "vanished-gradient" and finding.share > 0.9


class Rounded(nn.Module):
    """A net behind 33 grey levels: its gradient is 0 everywhere, its answers still change."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net((32 * x).round() / 32)


@pytest.mark.parametrize("name", [name for name in ATTACKS if not gradient_free(ATTACKS[name]())])
def test_a_gradient_that_is_zero_is_found_whatever_the_attack(name):
    net = Rounded(conv_net())
    finding = only(attack_findings(net, fitted(ATTACKS, name, steps=5), images(6, 10)))
    assert (finding.kind, finding.share) == ("vanished-gradient", 1.0)


# --- 2. step sizes ------------------------------------------------------------------------------


class Tie(nn.Module):
    """z = (4 x_0, 4 x_0 − (x_1 − 0.5)⁺, 0): a tie that no small step opens where x_1 is small."""

    def forward(self, x):
        s, d = x.flatten(1).unbind(dim=1)
        return torch.stack([4 * s, 4 * s - F.relu(d - 0.5), 0 * s], dim=1)


class Cliff(nn.Module):
    """The lead of class 0 is 4 x_0, and below x_0 = 0.49 falls by 100, which no gradient tells."""

    def forward(self, x):
        (s,) = x.flatten(1).unbind(dim=1)
        return torch.stack([4 * s - 100.0 * (s < 0.49), 0 * s], dim=1)


def test_a_tie_kills_the_step_size():
    x = pixels([0.5, 0.0], [0.5, 1.0], [0.6, 1.0], [0.6, 0.9])
    finding = only(attack_findings(Tie(), confsmooth(), x))
    assert (finding.kind, finding.share) == ("dead-step-size", 0.25)
    assert attack_findings(Tie(), auto(), x) == ()
    for steps, found in ((9, 0), (10, 1)):  # halved nine times a size is 1/512 of the first, then 1/1024
        assert len(attack_findings(Tie(), confsmooth(steps=steps), x)) == found


@pytest.mark.parametrize("attack", [adaptive(steps=30), confsmooth(steps=30)])
def test_a_size_that_dies_half_way_is_found(attack):
    # From x_0 = 0.5 nothing but the cliff at 0.49 is in the way, at a lead of 1.96 of 2.
    assert kinds(attack_findings(Cliff(), attack, pixels([0.5]))) == ["dead-step-size"]


def test_a_size_that_shrinks_at_the_boundary_is_at_its_end():
    # The lead 10 x_0 = 0.1 can be brought to 0 within 0.03: every size has to end there.
    assert attack_findings(Pixels(10.0), adaptive(steps=60), pixels([0.01])) == ()


@pytest.mark.parametrize("attack", [target_confidence(target=0.9, steps=60), random_confidence(steps=60)])
def test_a_size_that_shrinks_at_the_end_of_the_ball_is_at_its_end(attack):
    x = pixels([0.5])  # the confidence is about 1/2 whatever the attack does, and it goes to its end
    assert attack_findings(Pixels(1.0), attack, x) == ()


def test_walks_inside_other_attacks_are_watched():
    class Locked(nn.Module):  # any change of the image loses the label
        def forward(self, x):
            s = x.flatten(1)[:, 0]
            return torch.stack([4 * s - 100.0 * (s != 0.5), 0 * s], dim=1)

    for name in ("max_miscalibration", "random_confidence", "target_confidence", "overconfidence"):
        assert kinds(attack_findings(Locked(), build(name), pixels([0.5]))) == ["dead-step-size"]


def test_watching_costs_one_forward_and_a_black_box_attack_nothing():
    net, x = Counting(conv_net()), images(4)
    attack_findings(net, confsmooth(steps=7), x)
    assert (net.forwards, net.backwards) == (7 + 1 + 1, 7)
    net = Counting(conv_net())
    assert attack_findings(net, square_underconfidence(queries=20), x) == ()
    assert (net.forwards, net.backwards) == (0, 0)


# --- 3. and 4. records --------------------------------------------------------------------------


def judged(clean, attacked, y=None):
    """Records of these probabilities; the labels are 0 unless told."""
    n = len(clean)
    y = torch.zeros(n, dtype=torch.int64) if y is None else torch.tensor(y)
    none, nothing = torch.zeros(n), torch.zeros(0, 1, 1, 1)
    rows = (torch.tensor(p, dtype=torch.float32) for p in (clean, attacked))
    return Records(y, *rows, none, none, none, none, nothing, nothing)


CLEAN = [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]]


def test_what_never_improved_is_what_stood_still_or_went_the_other_way():
    after = [[0.7, 0.3], [0.8, 0.2], [0.75, 0.25], [0.55, 0.45]]
    down = only(record_findings({"a": judged(CLEAN, after)}, {"a": auto()}))
    assert (down.kind, down.attack, down.share) == ("never-improved", "a", 0.5)
    up = only(record_findings({"a": judged(CLEAN, after)}, {"a": overconfidence()}))
    assert (up.kind, up.share) == ("never-improved", 0.75)
    # Right answers down, wrong ones up: the first is wrong and fell, the third wrong and rose.
    both = only(record_findings({"a": judged(CLEAN, after, [1, 0, 1, 0])}, {"a": ace()}))
    assert (both.kind, both.share) == ("never-improved", 0.5)
    # The target .7 lies below the first two, the third is there, and the last has fallen.
    aimed = only(record_findings({"a": judged(CLEAN, after)}, {"a": target_confidence(target=0.7)}))
    assert (aimed.kind, aimed.share) == ("never-improved", 0.5)


def test_a_lost_label_is_no_progress_and_gets_its_own_finding():
    after = [[0.3, 0.7], [0.8, 0.2], [0.6, 0.4], [0.55, 0.45]]
    found = record_findings({"a": judged(CLEAN, after)}, {"a": dropout()})
    assert [(f.kind, f.share) for f in found] == [("lost-label", 0.25), ("never-improved", 0.25)]
    same = judged([[0.4, 0.3, 0.3]], [[0.4, 0.5, 0.1]])  # p_y has not moved, the label is lost
    assert kinds(record_findings({"a": same}, {"a": dropout()})) == ["lost-label"]


def test_progress_is_seen_where_the_confidence_rounds_to_one():
    clean, after = [[1.0, 1e-12], [1.0, 1e-12]], [[1.0, 3e-10], [1.0, 1e-12]]
    finding = only(record_findings({"a": judged(clean, after)}, {"a": auto()}))
    assert (finding.kind, finding.share) == ("never-improved", 0.5)


def test_images_with_no_room_are_not_held_against_an_attack():
    tied, sure = [[0.51, 0.49]] * 2, [[0.995, 0.005]] * 2
    assert record_findings({"a": judged(tied, tied)}, {"a": auto()}) == ()
    assert record_findings({"a": judged(sure, sure)}, {"a": overconfidence()}) == ()
    assert kinds(record_findings({"a": judged(sure, sure)}, {"a": auto()})) == ["never-improved"]
    assert kinds(record_findings({"a": judged(tied, tied)}, {"a": overconfidence()})) == ["never-improved"]


def test_misclassification_attacks_and_unknown_targets_are_left_out():
    for attack in (pgd(), random_confidence()):
        assert record_findings({"a": judged(CLEAN, CLEAN)}, {"a": attack}) == ()


def test_a_black_box_attack_below_the_best_white_box_one_is_told_with_share_and_mean():
    white = judged(CLEAN, [[0.8, 0.2], [0.6, 0.4], [0.6, 0.4], [0.55, 0.45]])
    other = judged(CLEAN, [[0.6, 0.4], [0.7, 0.3], [0.65, 0.35], [0.45, 0.55]])  # lost its last label
    black = judged(CLEAN, [[0.5001, 0.4999], [0.6, 0.4], [0.52, 0.48], [0.52, 0.48]])
    records = {"w": white, "o": other, "b": black}
    attacks = {"w": adaptive(), "o": dropout(), "b": square_underconfidence()}
    found = [f for f in record_findings(records, attacks) if f.kind == "black-box-ahead"]
    # Further than the best of both by .0999, 0, .08 and .03: two by more than .05, .0525 on average.
    assert (only(found).attack, only(found).share) == ("b", 0.5)
    assert "+0.052" in only(found).seen


def test_only_like_is_held_against_like():
    poor, good = judged(CLEAN, [[0.89, 0.11], [0.79, 0.21], [0.69, 0.31], [0.59, 0.41]]), None
    good = judged(CLEAN, [[0.55, 0.45]] * 4)
    lost = judged(CLEAN, [[0.55, 0.45], [0.45, 0.55], [0.45, 0.55], [0.45, 0.55]])

    def masked(white, black, reached=good):
        found = record_findings({"w": poor, "b": reached}, {"w": white, "b": black}, least=0.3)
        return "black-box-ahead" in kinds(found)

    assert masked(auto(), square_underconfidence())
    assert masked(dropout(), square_underconfidence())  # the mask is no other ball
    assert not masked(auto(), square_underconfidence(), lost)  # one image in four is below .3
    assert not masked(auto(eps=0.02), square_underconfidence())
    assert not masked(auto(norm="l2"), square_underconfidence())
    assert not masked(overconfidence(), square_underconfidence())
    assert not masked(pgd(), square_underconfidence())
    assert not masked(auto(), auto())
    up = {"w": target_confidence(target=0.92), "b": square_overconfidence()}
    risen = {"w": judged(CLEAN, [[0.92, 0.08]] * 4), "b": judged(CLEAN, [[0.99, 0.01]] * 4)}
    assert record_findings(risen, up) == ()


def test_a_label_that_white_box_attacks_lose_is_no_sign_of_masking():
    records = {"w": judged(CLEAN, [[0.2, 0.8]] * 4), "b": judged(CLEAN, [[0.55, 0.45]] * 4)}
    assert kinds(record_findings(records, {"w": dropout(), "b": square_underconfidence()})) == [
        "lost-label"
    ]


def test_a_net_behind_grey_levels_is_found_from_every_side():
    net = Rounded(conv_net(scale=30.0))
    x, y = images(16, 10), predictions(net, images(16, 10))
    attacks = {"confsmooth": confsmooth(), "square": square_underconfidence(queries=200)}
    records = {name: evaluate(net, [(x, y)], attack) for name, attack in attacks.items()}
    found = [(f.kind, f.attack) for f in diagnose(net, attacks, x, y, records=records)]
    assert found == [
        ("vanished-gradient", "confsmooth"),
        ("never-improved", "confsmooth"),
        ("black-box-ahead", "square"),
    ]


def test_records_that_do_not_fit_are_refused():
    seen = judged(CLEAN, CLEAN)
    with pytest.raises(InputError, match="no attack of that name"):
        record_findings({"a": seen}, {})
    with pytest.raises(InputError, match="other images"):
        record_findings({"a": seen, "b": judged(CLEAN, CLEAN, [1, 1, 0, 0])}, {"a": auto(), "b": auto()})
    with pytest.raises(InputError, match="least"):
        record_findings({"a": seen}, {"a": auto()}, least=2.0)


# --- 5. and 6. models ---------------------------------------------------------------------------


class Noisy(nn.Module):
    def __init__(self, net, noise):
        super().__init__()
        self.net, self.noise = net, noise

    def forward(self, x):
        return self.net(x + self.noise * torch.randn_like(x))


class Careless(nn.Module):
    """Functional dropout without its training flag."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net[-1](F.dropout(self.net[:-1](x), 0.1))


def batchwise():
    net = copy.deepcopy(conv_net())
    net[1] = nn.BatchNorm2d(8, track_running_stats=False)
    return net.eval()


@pytest.mark.parametrize("make", [lambda: Noisy(conv_net(), 0.003), lambda: Careless(conv_net())])
@pytest.mark.parametrize("seed", range(5))
def test_a_randomised_model_is_found(make, seed):
    torch.manual_seed(seed)
    state = torch.get_rng_state()
    assert kinds(model_findings(make().eval(), images(16, seed))) == ["randomised"]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("n", [4, 16, 64])
def test_answers_that_depend_on_the_batch_are_found(n):
    assert kinds(model_findings(batchwise(), images(n, 10))) == ["batch-dependent"]


def test_a_model_left_in_training_mode_is_found_and_left_as_it_was():
    net = copy.deepcopy(conv_net()).train()
    net[3].eval()
    state = copy.deepcopy(net.state_dict())
    assert kinds(model_findings(net, images(16, 10))) == ["training-mode"]
    assert [module.training for module in net.modules()] == [True, True, True, True, False] + 4 * [True]
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert model_findings(net, images(1)) == ()  # nothing to train on
    # Without a layer that minds the mode it makes no difference.
    assert model_findings(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).train(), images(16)) == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.half])
def test_probabilities_are_found_and_no_attack_is_tried_on_them(dtype):
    def net(x):
        return conv_net()(x).softmax(dim=1).to(dtype)

    finding = only(diagnose(net, {"auto": auto()}, images(8)))
    assert (finding.kind, finding.share) == ("probabilities", 1.0)
    meant = square_underconfidence(queries=10, outputs="probabilities")
    assert diagnose(net, {"square": meant}, images(8)) == ()
    assert model_findings(lambda x: net(x).float().clamp_min(1e-30).log(), images(8)) == ()


def test_a_model_of_arrays_is_looked_at_and_one_of_something_else_refused():
    def net(x):
        return conv_net()(x).numpy()

    assert model_findings(net, images(8)) == ()
    with pytest.raises(InputError, match="tensor of logits"):
        model_findings(lambda x: [1.0], images(8))


def test_findings_are_json_and_a_line_of_text():
    finding = only(model_findings(batchwise(), images(16)))
    assert json.loads(json.dumps(dataclasses.asdict(finding)))["kind"] == "batch-dependent"
    assert str(finding).count("\n") == 0 and finding.advice in str(finding)
    assert model_findings(conv_net(), images(0)) == ()
    assert attack_findings(conv_net(), auto(), images(0)) == ()


def test_heading_is_known_for_every_attack_of_the_table():
    clean, right = torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([True, False])
    found = {name: heading(factory(), clean, right) for name, factory in ATTACKS.items()}
    signs = {
        name: None if v is None else [None if s != s else s for s in v.tolist()]
        for name, v in found.items()
    }
    down, up, truth, unknown = [-1, -1], [1, 1], [-1, 1], [None, None]
    expected = {
        "fgsm": None,
        "pgd": None,
        "dropout": down,
        "adaptive": down,
        "confsmooth": down,
        "auto": down,
        "pgd_bisect": down,
        "overconfidence": up,
        "max_miscalibration": truth,
        "random_confidence": unknown,
        "target_confidence": down,
        "ace": truth,
        "cw": None,
        "deepfool": None,
        "square": None,
        "square_underconfidence": down,
        "square_overconfidence": up,
        "square_max_miscalibration": truth,
        "square_random_confidence": unknown,
        "noise": down,
    }
    assert signs | expected == signs
