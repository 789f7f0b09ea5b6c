"""Tables made by hand, for claims."""

import polars as pl

from poise.paper.claims import CLAIMS, REFEREE, judge
from poise.paper.judging import Claim
from poise.paper.terms import Ref

BY_NAME = {claim.name: claim for claim in (*CLAIMS, *REFEREE)}
A, B, C = (Ref("Vanilla", attack, "msp") for attack in "ABC")


def frame(*cells, architecture="LeNet", dataset="MNIST", std=0.001):
    """Cells (Ref, mean) or (Ref, mean, std) of one net."""
    rows = [
        {
            "architecture": architecture,
            "dataset": dataset,
            "defense": ref.defense,
            "attack": ref.attack,
            "metric": ref.metric,
            "mean": float(mean),
            "std": spread[0] if spread else std,
            "n": 3,
        }
        for ref, mean, *spread in cells
    ]
    return pl.DataFrame(rows, schema_overrides={"std": pl.Float64})


def claim(*cases, **fields):
    return Claim(name="c", section="-", statement="s", cases=cases, **fields)


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
