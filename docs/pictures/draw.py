"""The pictures of docs/concepts.md, from the two nets of `poise demo`.

`python docs/pictures/draw.py demo`, where demo is the folder that it left. Every curve and
bar is computed here from those nets; nothing is drawn by hand.
"""

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

import poise
from poise.attacks import auto
from poise.recalibration import Recalibrated, Scale, temperature

HERE = Path(__file__).parent
BLUE, ORANGE, GREY = "#1f6f8b", "#c8553d", "#9aa5ab"
EPS, THRESHOLD = 0.15, 0.5
mpl.rcParams.update(
    {"svg.hashsalt": "poise", "svg.fonttype": "none", "font.size": 10, "font.family": "sans-serif"}
)


def attack_picture(model, x):
    """One image before and after `auto`: the same answer, the confidence gone."""
    after = auto(eps=EPS)(model, x)
    before_p, after_p = (model(images).softmax(dim=1).detach() for images in (x, after))
    shown = int((before_p.amax(dim=1) - after_p.amax(dim=1)).argmax())
    figure = Figure(figsize=(5.8, 3.4), layout="constrained")
    boxes = figure.subplots(2, 2, width_ratios=(1, 3.4))
    for (picture, bars), images, p, words in zip(
        boxes, (x, after), (before_p[shown], after_p[shown]), ("before", "after"), strict=True
    ):
        picture.imshow(images[shown, 0], cmap="gray", vmin=0, vmax=1)
        picture.set_axis_off()
        top = int(p.argmax())
        bars.bar(range(len(p)), p, color=[ORANGE if k == top else GREY for k in range(len(p))])
        bars.axhline(THRESHOLD, color="black", lw=1, ls="--")
        outcome = "acted on" if p[top] >= THRESHOLD else "referred to a person"
        bars.set_title(
            f"{words}: the answer is {top}, with {p[top]:.2f}: {outcome}", fontsize=10, loc="left"
        )
        bars.set(ylim=(0, 1.05), xticks=range(len(p)), yticks=(0, 0.5, 1))
        bars.spines[["top", "right"]].set_visible(False)
    boxes[1, 1].set_xlabel("class")
    save(figure, "attack.svg")


def scale_picture(model, held, x):
    """Two nets that give the same answers in the same order: only the scale of the logits differs."""
    epsilons = np.linspace(0.01, EPS, 8)
    figure = Figure(figsize=(5.8, 3.2), layout="constrained")
    raw, fair = figure.subplots(1, 2, sharey=True)
    for k, colour, dash in ((1, BLUE, "-"), (3, ORANGE, "--")):
        net = Recalibrated(model, Scale(float(k))).eval()
        name = "the net" if k == 1 else f"its logits times {k}"
        raw.plot(epsilons, mean_curve(net, x, epsilons), color=colour, label=name)
        scaled = Recalibrated(net, temperature(net(held[0]).detach(), held[1])).eval()
        fair.plot(epsilons, mean_curve(scaled, x, epsilons), color=colour, ls=dash, label=name)
    raw.set_title("raw: one seems to hold more", fontsize=10, loc="left")
    fair.set_title("each at its least NLL: one line", fontsize=10, loc="left")
    raw.set(ylabel="mean confidence under auto", ylim=(0, 1))
    for axes in (raw, fair):
        axes.set_xlabel("ε")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9, loc="lower left")
    save(figure, "scale.svg")


def bracket_picture(model, x):
    """Between what an attack found and what no change can pass lies the truth."""
    epsilons = np.linspace(0.002, 0.05, 13)
    found = mean_curve(model, x, epsilons)
    lower = np.array([poise.certify.crown(eps=float(e))(model, x).lower.mean() for e in epsilons])
    figure = Figure(figsize=(5.8, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(epsilons, lower, found, color=BLUE, alpha=0.15, lw=0)
    axes.plot(epsilons, found, color=ORANGE, label="attacked: it is at most this")
    axes.plot(epsilons, lower, color=BLUE, label="certified: it is at least this")
    axes.axhline(0.1, color=GREY, lw=1, ls=":")
    axes.annotate("1 / classes: says nothing", (0.001, 0.03), color="#5b666c", fontsize=9)
    axes.annotate("the bracket", (0.033, 0.62), color=BLUE)
    axes.set(xlabel="ε", ylabel="mean worst confidence", ylim=(0, 1), xlim=(0, 0.051))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 0.12))
    save(figure, "bracket.svg")


def mean_curve(model, x, epsilons):
    """Mean confidence at each budget, by `auto`."""
    budgets = [float(e) for e in epsilons]
    return poise.curves.confidence_curve(model, x, lambda eps: auto(eps=eps), budgets).mean(dim=0)


def save(figure, name):
    """Write a picture without a date, so that the same numbers give the same file."""
    figure.savefig(HERE / name, metadata={"Date": None})


def main(demo):
    """All three, from the runs in that folder."""
    images = poise.data.load("digits", split="test", batch_size=60)
    (x, _), (held, held_y) = list(images)[:2]
    vanilla, uat = (poise.load(Path(demo, f"train-{name}")) for name in ("vanilla", "uat-smooth"))
    attack_picture(vanilla, x)
    scale_picture(vanilla, (held, held_y), x)
    bracket_picture(uat, x[:30])


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "demo")
