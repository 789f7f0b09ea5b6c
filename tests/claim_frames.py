"""Tables made by hand, for claims."""

import polars as pl

from poise.paper.claims import CLAIMS, REFEREE, judge
from poise.paper.judging import Claim
from poise.paper.numbers import Subject

BY_NAME = {claim.name: claim for claim in (*CLAIMS, *REFEREE)}
A, B, C = (("Vanilla", attack, "msp") for attack in "ABC")  # defense, attack, metric


def frame(*cells, architecture="LeNet", dataset="MNIST", std=0.001):
    """Cells (place, mean) or (place, mean, std) of one net, the place as of A."""
    rows = [
        {
            "architecture": architecture,
            "dataset": dataset,
            **dict(zip(("defense", "attack", "metric"), place, strict=True)),
            "mean": float(mean),
            "std": spread[0] if spread else std,
            "n": 3,
        }
        for place, mean, *spread in cells
    ]
    return pl.DataFrame(rows, schema_overrides={"std": pl.Float64})


def claim(says, **fields):
    return Claim("c", "-", "s", says, **fields)


def less(low, high, by=0.0):
    """The claim's function: one cell below another."""
    return lambda net: at(net, high).exceeds(at(net, low), by=by)


def at(net, place):
    defense, attack, metric = place
    return net(attack, metric, defense)


def needs(what):
    """The cells (role, metric, defense, attack) that a claim reads, by the names that it tells."""
    said = what.says(*(Subject(["net"], ["data"], role=role) for role in what.of))
    cases = [said] if hasattr(said, "margins") else said
    return list(dict.fromkeys(name for case in cases for name in case.lacks))


def verdict(what, cells):
    (row,) = judge([what], cells).iter_rows(named=True)
    return row["verdict"], row["clear"]


def altered(cells, table, architecture, dataset, means):
    """The cells with other means at (defense, attack, metric)."""
    place = (table, architecture, dataset)

    def mean(row):
        at = (row["defense"], row["attack"], row["metric"])
        here = (row["table"], row["architecture"], row["dataset"]) == place
        return means[at] if here and at in means else row["mean"]

    return cells.with_columns(mean=pl.Series([mean(row) for row in cells.iter_rows(named=True)]))
