"""The paper's figures: what they show is what was measured, by numbers worked out by hand."""

import math
import warnings
from copy import deepcopy

import polars as pl
import pytest
import torch
from torch import nn

from nets import Linear, conv_net, images
from poise import InputError, attacks
from poise.naming import plain
from poise.paper import salience as salience_module
from poise.paper.figures import most_oscillating, traces
from poise.paper.plots import (
    REST,
    RIGHT,
    WRONG,
    ClassConfidence,
    ConfidenceGrid,
    Perturbations,
    ProbabilityTrace,
    oscillations,
    rebound,
    save,
    svg,
)
from poise.paper.salience import random_signs, relative_weight, salience, saliency
from poise.records import Records

WALKS = 8 * torch.finfo(torch.float32).eps  # probabilities, kept in float32


def records(y, clean, attacked, x=None, x_adv=None):
    nothing = torch.zeros(len(y))
    none = torch.zeros(0, 1, 2, 2)
    x, x_adv = (none if x is None else x), (none if x_adv is None else x_adv)
    probs = (torch.tensor(p, dtype=torch.float32) for p in (clean, attacked))
    return Records(torch.tensor(y), *probs, nothing, nothing, nothing, nothing, x, x_adv)


# Three images: right and sure, right and less sure, wrong; all fall, the second to exactly .5.
THREE = records(
    [0, 1, 0],
    [[0.92, 0.08], [0.28, 0.72], [0.28, 0.72]],
    [[0.62, 0.38], [0.5, 0.5], [0.48, 0.52]],
)
SURE = records([0, 1, 0], *2 * [[[0.97, 0.03], [0.03, 0.97], [0.03, 0.97]]])
GRID = ConfidenceGrid({"vanilla": THREE, "uat": SURE}, "confsmooth", bins=10)
WALK = torch.tensor([[0.98, 0.01, 0.01], [0.6, 0.39, 0.01], [0.4, 0.59, 0.01], [0.5, 0.49, 0.01]])
CALM = torch.tensor([[0.98, 0.01, 0.01], [0.7, 0.29, 0.01]])
TRACE = ProbabilityTrace({"dropout": WALK, "adaptive": CALM}, ("cat", "dog", "eel"))


def test_perturbations_average_the_channels_of_one_image():
    x = torch.full((2, 3, 1, 2), 0.5)
    x_adv = x.clone()
    x_adv[1] = torch.tensor([[[0.75, 0.5]], [[0.25, 0.5]], [[0.5, 0.875]]])
    r = records([0, 0], [[0.7, 0.3], [0.9, 0.1]], [[0.8, 0.2], [0.4, 0.6]], x, x_adv)
    shown = Perturbations.of({"pgd": r, "none": records([0, 0], *2 * [[[0.7, 0.3], [0.9, 0.1]]], x, x)}, 1)
    titles = [ax.get_title() for ax in shown.plot().axes[:3]]
    assert titles == ["image\n0.90", "pgd\n0.60 label lost", "none\n0.90"]
    assert shown.frame().rows() == [
        ("pgd", 0, 0, 0.0),
        ("pgd", 0, 1, 0.125),
        ("none", 0, 0, 0.0),
        ("none", 0, 1, 0.0),
    ]


def test_perturbations_share_a_color_scale_and_name_lost_labels():
    x = torch.full((1, 2, 2), 0.5)
    clean, lost = torch.tensor([0.9, 0.1]), torch.tensor([0.4, 0.6])
    changed = {"pgd": x + 0.25, "adaptive": x - 0.125}
    figure = Perturbations(x, changed, clean, {"pgd": lost, "adaptive": clean}).plot()
    image, *maps = figure.axes[:3]
    assert image.get_title() == "image\n0.90"
    assert [ax.get_title() for ax in maps] == ["pgd\n0.60 label lost", "adaptive\n0.90"]
    assert [ax.images[0].get_clim() for ax in maps] == [(-0.25, 0.25)] * 2


def test_grid_counts_every_defense_and_stage():
    filled = GRID.frame().filter(pl.col("count") > 0).drop("upper")
    assert [(*row[:3], round(row[3], 6), row[4]) for row in filled.rows()] == [
        ("vanilla", "before", "correct", 0.7, 1),
        ("vanilla", "before", "correct", 0.9, 1),
        ("vanilla", "before", "incorrect", 0.7, 1),
        ("vanilla", "after", "correct", 0.5, 1),
        ("vanilla", "after", "correct", 0.6, 1),
        ("vanilla", "after", "incorrect", 0.5, 1),
        ("uat", "before", "correct", 0.9, 2),
        ("uat", "before", "incorrect", 0.9, 1),
        ("uat", "after", "correct", 0.9, 2),
        ("uat", "after", "incorrect", 0.9, 1),
    ]


def test_grid_draws_a_row_a_defense_on_the_same_axes():
    axes = GRID.plot().axes
    assert [ax.get_title() for ax in axes] == ["before", "after confsmooth", "", ""]
    assert [axes[0].get_ylabel(), axes[2].get_ylabel()] == ["vanilla", "uat"]
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in axes}) == 1
    after = {round(bar.get_x(), 6): bar.get_height() for bar in axes[1].containers[0]}  # right answers
    assert {x: h for x, h in after.items() if h} == {0.5: 0.5, 0.6: 0.5}
    assert [t.get_text() for t in axes[0].get_legend().get_texts()] == ["correct (2)", "incorrect (1)"]


@pytest.mark.parametrize(
    ("tops", "changes"), [([0, 0, 0], 0), ([0, 1, 1], 1), ([0, 1, 0, 2, 2], 3), ([1], 0)]
)
def test_oscillations_count_changes_of_the_top_class(tops, changes):
    assert oscillations(torch.eye(3)[tops]) == changes


def test_regained_adds_up_the_rises_of_the_clean_answer_alone():
    assert rebound(WALK) == pytest.approx(0.1)  # .98 .6 .4 .5
    assert rebound(CALM) == 0
    assert rebound(torch.tensor([[0.4, 0.6], [0.75, 0.25], [0.5, 0.5]])) == pytest.approx(0.25)


def test_trace_frame_is_step_by_step():
    frame = TRACE.frame()
    assert frame.columns == ["attack", "step", "class", "probability"]
    assert len(frame) == 4 * 3 + 2 * 3
    row = frame.filter(attack="dropout", step=2, **{"class": "dog"})
    assert row["probability"].to_list() == [pytest.approx(0.59)]


def test_trace_plot_draws_the_frame_and_names_the_likely_classes():
    figure = TRACE.plot()
    panels = dict(zip(TRACE.traces, figure.axes, strict=True))
    assert panels["dropout"].get_title() == "dropout\ntop class changes 2×\nconfidence regained 0.10"
    assert panels["adaptive"].get_title() == "adaptive\ntop class changes 0×\nconfidence regained 0.00"
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["cat", "dog", "others"]
    lines = {line.get_color(): line.get_ydata().tolist() for line in panels["dropout"].lines[:3]}
    assert lines == {c: WALK[:, j].tolist() for j, c in enumerate((RIGHT, WRONG, REST))}
    assert all(panel.get_ylim() == (-0.1, 1.03) for panel in panels.values())


def test_trace_plot_marks_the_top_class_of_each_step():
    squares = TRACE.plot().axes[0].collections[0]
    first, second = (tuple(squares.get_facecolors()[step][:3]) for step in (0, 2))
    assert len(squares.get_offsets()) == 4 and first != second
    assert tuple(squares.get_facecolors()[3][:3]) == first  # back again


def test_class_confidence_counts_the_threshold_itself_as_above():
    frame = ClassConfidence(THREE, ("cat", "dog")).frame()
    assert frame["predicted"].to_list() == ["cat", "dog", "dog"]  # of the clean image
    assert frame["confidence"].to_list() == pytest.approx([0.62, 0.5, 0.52])
    assert frame["above"].to_list() == [True, True, True]
    assert ClassConfidence(THREE, ("cat", "dog"), 0.6).frame()["above"].to_list() == [True, False, False]


def test_class_confidence_draws_each_class_in_its_column():
    n = 200
    confidence = torch.linspace(0.34, 1, n)
    attacked = torch.stack([confidence, (1 - confidence) / 2, (1 - confidence) / 2], dim=1)
    clean = torch.eye(3)[torch.arange(n) % 2]  # nobody is a third-class image
    shown = ClassConfidence(
        records([0] * n, clean.tolist(), attacked.tolist()), ("cat", "dog", "eel"), 0.67
    )
    ax = shown.plot().axes[0]
    spots = [points.get_offsets() for points in ax.collections]
    for place in (0, 1):
        assert (abs(spots[place][:, 0] - place) <= 0.35).all()
        assert spots[place][:, 1].tolist() == pytest.approx(confidence[place::2].tolist())
        assert len(set(spots[place][:, 0].round(4))) == n // 2  # side by side
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels == ["cat\n50 above\n50 below", "dog\n50 above\n50 below", "eel\n0 above\n0 below"]
    assert ax.lines[0].get_ydata() == [0.67, 0.67]


@pytest.mark.parametrize(
    "make",
    [
        lambda: ClassConfidence(THREE, ("cat", "dog", "eel")),
        lambda: ClassConfidence(THREE, ("cat", "cat")),
        lambda: ClassConfidence(THREE, ("cat", "dog"), 1.5),
        lambda: ProbabilityTrace({"pgd": WALK}, ("cat", "dog")),
        lambda: ProbabilityTrace({"pgd": WALK[0]}, ("cat", "dog", "eel")),
        lambda: ProbabilityTrace({}, ("cat", "dog")),
        lambda: ConfidenceGrid({}, "pgd"),
    ],
)
def test_displays_refuse_what_does_not_fit(make):
    with pytest.raises(InputError, match=r"classes|threshold|at least one"):
        make()


DISPLAYS = {
    "grid": GRID,
    "trace": TRACE,
    "classes": ClassConfidence(THREE, ("cat", "dog")),
    "maps": Perturbations(
        torch.ones(1, 2, 2), {"pgd": torch.zeros(1, 2, 2)}, torch.ones(2) / 2, {"pgd": torch.ones(2) / 2}
    ),
}


@pytest.mark.parametrize("name", DISPLAYS)
def test_save_writes_the_same_bytes_again(name, tmp_path):
    display = DISPLAYS[name]
    first = save(display, tmp_path / "new" / "folder", name)
    second = save(display, tmp_path, name)
    assert first == tmp_path / "new" / "folder" / f"{name}.svg"
    assert sorted(file.name for file in first.parent.iterdir()) == [f"{name}.csv", f"{name}.svg"]
    for file in (first, first.with_suffix(".csv")):
        assert file.read_bytes() == (second.parent / file.name).read_bytes()
    text = first.read_text(encoding="utf-8")
    assert text.rstrip().endswith("</svg>") and "dc:date" not in text
    frame = display.frame()
    assert pl.read_csv(first.with_suffix(".csv"), schema=frame.schema).equals(frame)


def test_every_figure_shows_names_of_any_letters(tmp_path):
    names = [r"$\frac{$", "caf\udce9", "\x1b[31m", "_hidden", "z" * 200, "攻撃", "a\nb"]
    classes = (*names, *(name[:-1] + "'" for name in names))  # alike in all but the end
    probs = (torch.eye(14) * 0.9 + 0.1 / 14).tolist()
    all_classes = records(list(range(14)), probs, probs)
    walk = torch.tensor(probs)
    x = torch.full((1, 2, 2), 0.5)
    changed, lost = dict.fromkeys(names, x), dict.fromkeys(names, THREE.clean[0])
    shown = {
        "grid": ConfidenceGrid(dict.fromkeys(names, THREE), names[0]),
        "trace": ProbabilityTrace(dict.fromkeys(names, walk), classes),
        "class": ClassConfidence(all_classes, classes),
        "change": Perturbations(x, changed, THREE.clean[0], lost),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for stem, display in shown.items():
            save(display, tmp_path, stem)
        for legends in (classes[:6], classes[6:12]):  # so many are named
            svg(ProbabilityTrace({"a": walk[:6, :6]}, legends))
    frame = pl.read_csv(tmp_path / "class.csv")
    assert frame["predicted"].to_list() == [plain(name) for name in classes]


def test_legends_name_every_class_that_shares_its_shown_letters():
    classes = ("z" * 200 + "a" * 40, "z" * 240 + "a" * 40, "c")  # alike once shortened
    (legend,) = ProbabilityTrace({"dropout": WALK}, classes).plot().legends
    assert len(legend.get_texts()) == 3


def test_save_says_where_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        save(GRID, tmp_path / "file", "grid")


def test_other_numbers_give_other_bytes():
    assert svg(GRID) != svg(ConfidenceGrid({"vanilla": SURE, "uat": SURE}, "confsmooth", bins=10))


# One pixel, two classes, log-odds 10·x − 4.3: the boundary lies at .43.
LINE, START = Linear(torch.tensor(10.0), -4.3), torch.full((1, 1, 1, 1), 0.6)


def sigmoid(odds):
    return [1 / (1 + math.exp(-value)) for value in odds]


def test_trace_of_pgd_walks_over_the_boundary():
    (walk,) = traces(LINE, START, attacks.pgd(eps=0.5, step=0.1, steps=3))  # .6 .5 .4 .3
    assert walk[:, 0].tolist() == pytest.approx(sigmoid([1.7, 0.7, -0.3, -1.3]), abs=1e-5)
    assert walk.sum(dim=1).tolist() == pytest.approx([1] * 4)
    assert oscillations(walk) == 1


def test_trace_of_adaptive_stands_still_on_a_step_back():
    # .6; .4 is over: back, α .1; .5, α .11; .39 is over: back, α .055; .445
    (walk,) = traces(LINE, START, attacks.adaptive(eps=0.5, step=0.2, steps=4, keep="last"))
    assert walk[:, 0].tolist() == pytest.approx(sigmoid([1.7, 1.7, 0.7, 0.7, 0.15]), abs=1e-5)
    assert oscillations(walk) == 0


def test_traces_end_where_the_attack_does_and_belong_to_the_image():
    # float64: in float32 the batch's make-up can turn the sign of a gradient near 0, and a whole step
    net, x = conv_net(1, dtype=torch.float64), images(6, 3, dtype=torch.float64)
    attack = attacks.dropout_accumulated(eps=0.1, step=0.05, steps=6, keep_fraction=0.5)
    walks = traces(net, x, attack, seed=3)
    x_adv = attack(net, x, generator=torch.Generator().manual_seed(3))
    assert walks.shape == (6, 7, 5)
    with torch.no_grad():
        ends = torch.stack([net(x), net(x_adv)], dim=1).softmax(dim=2)
    assert torch.allclose(walks[:, [0, -1]].double(), ends, rtol=0, atol=WALKS)
    assert torch.allclose(traces(net, x[4:5], attack, seed=3)[0], walks[4], rtol=0, atol=WALKS)
    assert not torch.allclose(traces(net, x, attack, seed=4), walks, atol=1e-3)


def test_traces_take_the_true_labels():
    (walk,) = traces(LINE, START, attacks.pgd(eps=0.5, step=0.1, steps=1), y=torch.tensor([1]))
    assert walk[:, 0].tolist() == pytest.approx(sigmoid([1.7, 2.7]), abs=1e-5)


@pytest.mark.parametrize(
    ("x", "attack", "message"),
    [
        (START, attacks.auto(steps=3), "Descent"),
        (START, attacks.pgd(steps=0), "steps"),
        (START[:0], attacks.pgd(steps=1), "no images"),
    ],
)
def test_traces_refuse_what_has_no_walk(x, attack, message):
    with pytest.raises(InputError, match=message):
        traces(LINE, x, attack)


def test_the_image_shown_is_a_right_answer_and_the_first_of_the_most_restless():
    tops = torch.tensor([[0, 0, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0], [0, 1, 0, 0], [0, 1, 1, 1]])
    walks = torch.eye(2)[tops]
    assert most_oscillating(walks, torch.zeros(5, dtype=torch.long)) == 2  # 1 is restless, but wrong
    assert most_oscillating(walks[:1], torch.tensor([0])) == 0
    with pytest.raises(InputError, match="rightly"):
        most_oscillating(walks, torch.tensor([1, 0, 1, 1, 1]))


@pytest.mark.parametrize("odds", [0.5, 30.0, 300.0])  # in float32 log p is exactly 0 from about 17 on
def test_saliency_of_a_linear_net_is_its_weights_however_sure_it_is(odds):
    weight = torch.tensor([[[1.0, -2.0], [0.5, 0.0]]])
    x = images(3, 0, shape=(1, 2, 2))
    net = Linear(weight, odds + 3.0)  # the sign of the log-odds is that of class 0
    assert torch.allclose(saliency(net, x), weight.abs().expand(3, 1, 2, 2))


def test_saliency_is_that_of_the_log_confidence_up_to_a_factor():
    net, x = conv_net(2, dtype=torch.float64), images(5, 7, dtype=torch.float64)
    x.requires_grad_()
    log_p = net(x).log_softmax(dim=1).max(dim=1).values
    slope = torch.autograd.grad(log_p.sum(), x)[0].abs() / -torch.expm1(log_p)[:, None, None, None]
    assert torch.allclose(saliency(net, x), slope, rtol=1e-6)


def test_saliency_does_not_depend_on_the_batch_and_gives_the_net_back(monkeypatch):
    net, x = deepcopy(conv_net(2, dtype=torch.float64)), images(5, 7, dtype=torch.float64)
    whole = saliency(net, x)
    monkeypatch.setattr(salience_module, "AT_ONCE", 2)
    net.train()
    rounding = 1e3 * torch.finfo(torch.float64).eps * float(whole.max())  # sums of some hundred terms
    assert torch.allclose(saliency(net, x), whole, rtol=0, atol=rounding)
    assert net.training and net[1].training and all(p.grad is None for p in net.parameters())


def test_relative_weight_by_hand():
    s = torch.tensor([[[[4.0, 2.0, 0.0, 2.0]]]]).expand(4, 1, 1, 4)  # mean 2
    delta = torch.tensor([[-0.1, 0, 0, 0], [0, 0, 0.1, 0], [0.1, -0.1, 0.1, -0.1], [0.1, 0, 0.3, 0]])
    found = relative_weight(delta.reshape(4, 1, 1, 4), s)
    assert found.tolist() == pytest.approx([2, 0, 1, 0.5])
    assert relative_weight(torch.zeros(1, 1, 1, 4), s[:1]).isnan().all()
    assert relative_weight(s[:1], torch.zeros(1, 1, 1, 4)).isnan().all()
    with pytest.raises(InputError, match="one shape"):
        relative_weight(s[:1], s)


def test_salience_by_hand():
    # two images of 1×4 pixels; saliency 3, 1, 0, 0 (mean 1)
    net = Linear(torch.tensor([[[3.0, -1.0, 0.0, 0.0]]]))
    x = torch.tensor([[0.9, 0.0, 0.0, 0.6], [0.8, 0.5, 0.1, 0.2]]).reshape(2, 1, 1, 4)
    moved = x + torch.tensor([[-0.1, 0.1, 0.0, 0.2], [0.0, 0.0, 0.0, 0.0]]).reshape(2, 1, 1, 4)
    frame = salience(net, x, {"pgd": moved, "none": x})
    assert frame.columns == ["attack", "image", "salient", "object", "object_share", "object_area"]
    first, second = frame.rows()[:2]
    # Σ|δ| = .4, Σ|δ|s = .3 + .1; the object is pixels 0 and 3: .3 of .4, on half of the area
    assert first == ("pgd", 0, *(pytest.approx(v, rel=1e-5) for v in (1.0, 1.5, 0.75, 0.5)))
    assert second == ("pgd", 1, None, None, None, 0.25)  # .5 itself is ground
    assert frame.filter(attack="none")["salient"].to_list() == [None, None]
    assert salience(net, x, {"pgd": moved}, brighter=0.95)["object_area"].to_list() == [0, 0]
    with pytest.raises(InputError, match="pgd changed the shape"):
        salience(net, x, {"pgd": moved[:1]})


def test_random_signs_are_chance_inside_the_box():
    s = images(20, 1)
    grey = torch.full_like(s, 0.5)
    delta = random_signs(grey, eps=0.1, seed=5) - grey
    assert relative_weight(delta, s).tolist() == pytest.approx([1] * 20, abs=1e-5)
    up = (random_signs(torch.zeros(40, 1, 50, 50), eps=0.1, seed=1) > 0).double().mean()
    assert abs(up - 0.5) < 0.1  # equal images move alike: 2,500 draws, 10 standard errors
    x = images(400, 2)
    ups = (random_signs(x, eps=0.01) > x)[(x > 0.1) & (x < 0.9)].double()
    assert abs(ups.mean() - 0.5) < 4 * 0.5 / len(ups) ** 0.5  # about 1 seed in 16,000


def test_a_perturbation_on_what_matters_weighs_more():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    x = images(8, 4, shape=(1, 4, 4))
    s = saliency(net, x)
    top = s >= s.flatten(1).median(dim=1).values[:, None, None, None]
    frame = salience(net, x, {"on": x + 0.1 * top, "off": x - 0.1 * ~top})
    weights = frame.group_by("attack").agg(pl.col("salient").min().alias("low"), pl.col("salient").max())
    assert weights.filter(attack="on")["low"].item() > 1 > weights.filter(attack="off")["salient"].item()
