"""Square and the black-box attacks on the confidence: random search from a model's outputs alone."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchattacks

from nets import Counting, confidence, conv_net, digits_net, images, lead, predictions
from poise import InputError
from poise.attacks import square_moves
from poise.attacks.square import square
from poise.attacks.square_confidence import (
    square_max_miscalibration,
    square_overconfidence,
    square_random_confidence,
    square_underconfidence,
)
from poise.draws import Draw

KEEPING = [
    square_underconfidence,
    square_overconfidence,
    square_max_miscalibration,
    square_random_confidence,
]
EPS = {"linf": 0.1, "l2": 0.8}
QUERIES = 24
every = pytest.mark.parametrize("make", [square, *KEEPING])
each_keeping = pytest.mark.parametrize("make", KEEPING)
each_norm = pytest.mark.parametrize("norm", EPS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def attack_of(make, norm="linf", queries=QUERIES, **options):
    return make(eps=EPS[norm], norm=norm, queries=queries, **options)


def length(delta, norm):
    order = {"linf": math.inf, "l2": 2}[norm]
    return torch.linalg.vector_norm(delta.double().flatten(1), ord=order, dim=1)


@every
@each_norm
@pytest.mark.parametrize("shape", [(2, 2, 3), (1, 12, 5)])
def test_images_lie_in_the_ball_and_in_the_box_and_move(make, norm, shape):
    net, x = conv_net(shape=shape), images(8, 10, shape=shape)
    x_adv = attack_of(make, norm)(net, x)
    assert ((x_adv >= 0) & (x_adv <= 1)).all()
    moved = length(x_adv - x, norm)
    assert (moved <= EPS[norm] * (1 + 1e-6) + 2.0**-24 * math.sqrt(x[0].numel())).all()
    assert (moved > 0).any()


@each_keeping
@each_norm
def test_the_label_is_kept_one_by_one_with_the_margin(make, norm):
    net, x = conv_net(1, scale=30.0), images(16, 11)
    y = (predictions(net, x) + torch.arange(16) % 2) % 5  # half of them wrong
    x_adv = attack_of(make, norm)(net, x, y)
    for before, after in zip(x.split(1), x_adv.split(1), strict=True):
        assert torch.equal(predictions(net, after), predictions(net, before))
        assert lead(net, after) >= min(1e-4, float(lead(net, before))) - 1e-6


@every
@each_norm
def test_an_image_alone_is_attacked_as_in_a_batch_to_the_bit(make, norm):
    net, x = conv_net(dtype=torch.float64), images(7, 10, dtype=torch.float64)
    attack = attack_of(make, norm)
    together, spent = attack.run(net, x, generator=generator())
    alone = [attack.run(net, image[None], generator=generator()) for image in x]
    assert torch.equal(together, torch.cat([image for image, _ in alone]))
    assert torch.equal(spent, torch.cat([count for _, count in alone]))


@every
@each_norm
def test_the_queries_of_every_image_are_those_that_the_model_saw(make, norm):
    net, x = conv_net(scale=30.0), images(12, 10)
    seen = torch.zeros(12, dtype=torch.int64)

    def marked(x):  # a channel more, constant over an image, says which image it is
        seen[(x[:, 3, 0, 0] * 12).long()] += 1
        return net(x[:, :3])

    class Fixed:
        """Moves that leave the last channel alone."""

        def __init__(self, moves):
            self.ball, self.moves = moves.ball, moves

        def start(self, center, draw):
            return torch.cat([self.moves.start(center[:, :3], draw), center[:, 3:]], dim=1)

        def propose(self, at, center, side, draw):
            new = self.moves.propose(at[:, :3], center[:, :3], side, draw)
            return torch.cat([new, center[:, 3:]], dim=1)

    mark = ((torch.arange(12) + 0.5) / 12).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    attack = attack_of(make, norm)
    _, spent = replace(attack, moves=Fixed(attack.moves)).run(marked, torch.cat([x, mark], dim=1))
    assert torch.equal(seen, spent)
    assert (spent >= 1).all() and (spent <= QUERIES).all() and spent.min() < spent.max()


@every
def test_no_gradient_is_asked_for_and_a_graph_plays_no_part(make):
    net, x = Counting(conv_net()), images(6, 10)
    attack = attack_of(make)
    expected, spent = attack.run(net, x)
    assert net.backwards == 0 and net.forwards == spent.max()
    with torch.no_grad():
        assert torch.equal(attack(net, x), expected)
    with torch.inference_mode():
        assert torch.equal(attack(net, x.clone()), expected)
    assert torch.equal(attack(lambda x: net(x).detach(), x), expected)


@every
def test_a_numpy_function_that_returns_probabilities_will_do(make):
    net, x = conv_net(dtype=torch.float64), images(8, 10, dtype=torch.float64)

    def endpoint(x):
        with torch.no_grad():
            answer = net(torch.from_numpy(x.numpy())).softmax(dim=1).numpy()
        answer.flags.writeable = False
        return answer

    assert isinstance(endpoint(x), np.ndarray)
    expected = attack_of(make)(net, x)
    # log p is z up to a constant: the search is the same.
    assert torch.equal(attack_of(make, outputs="probabilities")(endpoint, x), expected)
    single = attack_of(make, outputs="probabilities")(lambda x: endpoint(x).astype(np.float16), x)
    assert ((single >= 0) & (single <= 1)).all()


def test_outputs_that_are_not_what_was_said_are_refused():
    net, x = conv_net(), images(4)
    with pytest.raises(InputError, match="outputs='probabilities'"):
        square()(lambda x: net(x).softmax(dim=1), x)
    with pytest.raises(InputError, match="outputs='logits'"):
        square(outputs="probabilities")(net, x)
    with pytest.raises(InputError, match="y must lie in"):
        square(outputs="probabilities")(lambda x: net(x).softmax(dim=1), x, torch.full((4,), 5))
    for outputs in ("logits", "probabilities"):
        attack = square(outputs=outputs)
        for wrong in (net(x)[:3], net(x)[:, :1], net(x) * math.nan, [[0.0, 1.0]] * 4, net(x)[0]):
            with pytest.raises(InputError, match="the model"):
                attack(lambda x, wrong=wrong: wrong, x)
    factors = iter([1.0, math.nan])
    with pytest.raises(InputError, match="during the attack"):
        square()(lambda x: net(x) * next(factors), x)


@every
@each_norm
def test_nothing_to_do_gives_x_and_asks_nothing(make, norm):
    net, x = Counting(conv_net()), images(4).requires_grad_()
    none = images(0)
    for attack, at in [
        (make(queries=0, norm=norm), x),
        (make(eps=0.0, norm=norm), x),
        (make(norm=norm), none),
    ]:
        x_adv, spent = attack.run(net, at)
        assert torch.equal(x_adv, at) and not x_adv.requires_grad
        assert torch.equal(spent, torch.zeros(len(at), dtype=torch.int64))
    assert net.forwards == 0


@every
@each_norm
def test_more_queries_of_one_horizon_are_never_worse(make, norm):
    net, x = conv_net(scale=30.0, dtype=torch.float64), images(16, 10, dtype=torch.float64)
    attack = replace(attack_of(make, norm), horizon=40)
    goal = attack.criterion.goal(net(x).detach(), None, Draw.of(x))
    losses = [
        attack.criterion.score(net(replace(attack, queries=n)(net, x)).detach(), goal).loss
        for n in (0, 1, 2, 3, 10, 40)
    ]
    for before, after in itertools.pairwise(losses):
        assert (after <= before + 1e-12).all()
    assert (losses[-1] < losses[0]).any()


def test_square_stops_once_misclassified_and_goes_on_till_then():
    net, x = conv_net(scale=30.0), images(24, 10)
    y = predictions(net, x)
    y[::4] = (y[::4] + 1) % 5
    x_adv, spent = attack_of(square).run(net, x, y)
    lost = predictions(net, x_adv) != y
    assert (spent[~lost] == QUERIES).all() and (spent[lost] <= QUERIES).all() and lost.any()
    assert torch.equal(spent[::4], torch.ones(6, dtype=torch.int64))
    assert torch.equal(x_adv[::4], x[::4])


@pytest.mark.parametrize("norm", EPS)
def test_under_lowers_and_over_raises_every_confidence_or_leaves_it_and_stops_where_it_should(
    norm,
):
    net, x, labels = digits_net()
    x, labels = x[:120], labels[:120]
    y = predictions(net, x)
    clean = confidence(net, x, y)
    budget = {"eps": {"linf": 0.15, "l2": 0.8}[norm], "norm": norm, "queries": 80}
    under, spent = square_underconfidence(**budget).run(net, x, labels)
    assert (confidence(net, under, y) <= clean + 1e-6).all() and (confidence(net, under, y) < clean).any()
    z = net(under).detach().topk(2).values
    done = z[:, 0] - z[:, 1] <= 0.1 + 1e-5
    assert (spent[~done] == 80).all() and done.any() and spent[done].min() < 80
    over, spent = square_overconfidence(**budget).run(net, x, labels)
    assert (confidence(net, over, y) >= clean - 1e-6).all() and (confidence(net, over, y) > clean).any()
    done = confidence(net, over, y) >= 0.99 - 1e-6
    assert (spent[~done] == 80).all() and done.any()
    assert torch.equal(over[clean > 0.991], x[clean > 0.991])  # nothing to do
    # Labels decide the direction only where they are used.
    wrong = torch.arange(120) % 2 == 0
    mixed = square_max_miscalibration(**budget)(net, x, torch.where(wrong, (y + 1) % 10, y))
    assert torch.equal(mixed[wrong], over[wrong]) and torch.equal(mixed[~wrong], under[~wrong])
    assert torch.equal(square_max_miscalibration(**budget)(net, x), under)


@pytest.mark.parametrize("norm", EPS)
def test_random_confidences_are_aimed_at_and_come_nearer_for_every_image(norm):
    net, x, _ = digits_net()
    x = x[:120]
    y = predictions(net, x)
    attack = square_random_confidence(eps={"linf": 0.2, "l2": 1.2}[norm], norm=norm, queries=80)
    x_adv, spent = attack.run(net, x, generator=generator(3))
    target = attack.criterion.goal(net(x).detach(), None, Draw.of(x, generator(3))).want
    assert (target > 0.15).all() and (target < 0.99).all() and target.std() > 0.15
    before, after = ((confidence(net, at, y) - target).abs() for at in (x, x_adv))
    assert (after <= before + 1e-6).all()
    assert after.mean() < before.mean() / 2
    assert (spent[after > 0.0101] == 80).all() and (spent[after < 0.0099] <= 80).all()


class Plain(square_moves.Squares):
    """Moves that may propose what the image already has, as the source's do."""

    def propose(self, at, center, side, draw):
        u = square_moves._numbers(center, draw, 2 + center.shape[1])
        inside, _, _ = square_moves._window(center, max(round(side), 1), u[:, 0], u[:, 1])
        move = self.ball.eps * square_moves._signs(u[:, 2:])[:, :, None, None]
        return torch.where(inside, self.ball.project(center + move, center), at)


def source_window(x, side, u, v):
    """Squares that never reach the last row and column, as the source's."""
    places = [(u, x.shape[2]), (v, x.shape[3])]
    row, column = (torch.arange(n) - (at[:, None] * (n - side)).floor().long() for at, n in places)
    down, across = ((i >= 0) & (i < side) for i in (row, column))
    return down[:, None, :, None] & across[:, None, None, :], row, column


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.12), ("l2", 0.6)])
def test_success_is_torchattacks_s_with_the_source_s_moves_and_no_less_with_ours(norm, eps, monkeypatch):
    """Robust accuracy after 100 queries, mean of 3 seeds on 200 images.

    Torchattacks puts one square on the whole batch: its seeds scatter by 0.035, the mean of three by 0.02.
    """
    net, x, y = digits_net()
    x, y = x[:200], y[:200]

    def robust(attacks):
        return sum(float((predictions(net, attack(x, y)) == y).float().mean()) for attack in attacks) / 3

    def searches(attack):
        return [lambda x, y, s=s: attack(net, x, y, generator=generator(s)) for s in range(3)]

    attack = square(eps=eps, norm=norm, queries=100)
    ours = robust(searches(attack))
    with torch.random.fork_rng(devices=[]):
        options = {"norm": norm.title(), "eps": eps, "n_queries": 99}
        theirs = robust([torchattacks.Square(net, seed=seed, **options) for seed in range(3)])
    monkeypatch.setattr(square_moves, "_window", source_window)
    alike = replace(attack, moves=Plain(attack.moves.ball)) if norm == "linf" else attack
    assert abs(robust(searches(alike)) - theirs) <= 0.07
    assert ours <= theirs + 0.03
    assert ours < float((predictions(net, x) == y).float().mean()) - 0.1


@every
def test_l1_is_refused_with_the_way_out(make):
    with pytest.raises(InputError, match=r"norm 'l1' has no random search.*l2, linf.*gradient attack"):
        make(norm="l1")
