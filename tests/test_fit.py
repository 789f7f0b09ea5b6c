"""A model and data that do not fit each other are matched by name, refused, or told of."""

import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import poise
from poise import InputError, labels, models, store
from poise.cli import main
from poise.data import ImageSet

HUES = {"benign": 40, "malignant": 120, "normal": 200, "cat": 40, "dog": 120, "fox": 200}


class Levels(nn.Module):
    """Grey levels told apart by the nearest of 40, 120 and 200: trained from the start."""

    def __init__(self, classes):
        super().__init__()
        self.last = nn.Linear(1, classes)
        level = torch.tensor([40, 120, 200][:classes] + [0] * (classes - 3)) / 255
        with torch.no_grad():
            self.last.weight.copy_(200 * level[:, None])
            self.last.bias.copy_(-100 * level**2)

    def forward(self, x):
        return self.last(x.flatten(1).mean(dim=1, keepdim=True))


@pytest.fixture(autouse=True)
def levels(monkeypatch):
    monkeypatch.setitem(models.MODELS, "levels", lambda classes, shape: Levels(classes))


def folders(top, kinds, n=12, *, seed=0, size=(8, 8)):
    """PNGs a class, each class at its grey level; {folder: level}."""
    draw = np.random.default_rng(seed)
    for kind, level in kinds.items():
        (top / kind).mkdir(parents=True)
        for i in range(n):
            pixels = np.clip(level + draw.integers(-12, 13, (*size[::-1],)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(top / kind / f"{i}.png")
    return f"folder:{top}"


BREAST = {name: HUES[name] for name in ("benign", "malignant", "normal")}


def trained(tmp_path, kinds=BREAST, *more, name="run", **options):
    """A run folder whose model tells the levels of the first three classes."""
    folders(tmp_path / f"{name}-train" / "train", kinds, **options)
    flags = ["--model", "levels", "--epochs", "1", "--lr", "1e-9", "--out", str(tmp_path / name)]
    main(["train", "--data", f"folder:{tmp_path / f'{name}-train'}", *flags, *more])
    return tmp_path / name


def evaluated(run, data, out, *more):
    """The accuracy and job.json of `poise evaluate`."""
    flags = ["--attacks", "fgsm", "--eps", "1/255", "--out", str(out)]
    main(["evaluate", "--model", str(run), "--data", data, *flags, *more])
    records = poise.report.read(out).attacked[0].records
    return float(records.correct.double().mean()), store.read_job(out)


def kinds(content):
    return [finding["kind"] for finding in content["findings"]]


# labels.match


@pytest.mark.parametrize(
    ("data", "model", "expected"),
    [
        (["a", "b"], ["a", "b"], (0, 1)),
        (["b", "a"], ["a", "b"], (1, 0)),
        (["Fox", "CAT"], ["cat", "dog", "fox"], (2, 0)),
        (["T 62", "BTR-60"], ["BTR_60", "t62", "T_62"], (2, 0)),
        (
            [unicodedata.normalize("NFD", "café"), "the"],
            ["the", unicodedata.normalize("NFC", "café")],
            (1, 0),
        ),
        (["Straße", "x"], ["x", "STRASSE"], (1, 0)),
        (["tench", "golden_retriever"], ["tench, Tinca tinca", "x", "golden retriever"], (0, 2)),
        (["n01440764", "n02099601"], ["n02099601 golden retriever", "n01440764 tench"], (1, 0)),
        (["cat", "Cat"], ["Cat", "cat"], (1, 0)),
        (["0", "1", "10", "2"], ["0", "1", "2", "10"], (0, 1, 3, 2)),
        (["0", "1", "2"], ["LABEL_0", "LABEL_1", "LABEL_2"], (0, 1, 2)),
        (["no", "yes"], ["0", "1"], (0, 1)),
        (["no", "yes"], ["LABEL_0", "LABEL_1"], (0, 1)),
        (["0", "1"], ["cat", "dog"], (0, 1)),
        (["n01440764", "n01443537"], ["tench, Tinca tinca", "goldfish, Carassius auratus"], (0, 1)),
        (["7", "3"], [str(i) for i in range(10)], (7, 3)),
        (["no", "yes"], None, (0, 1)),
    ],
)
def test_classes_are_matched_by_name_and_by_place_where_there_are_no_names(data, model, expected):
    assert labels.match(data, model, outputs=len(model or data)) == expected


@pytest.mark.parametrize(
    ("data", "model", "outputs", "said"),
    [
        (
            ["a_healthy", "benign", "malignant"],
            ["benign", "malignant", "normal"],
            3,
            "a_healthy has no match",
        ),
        (["cat", "dog", "fox"], ["benign", "malignant", "normal"], 3, "cat, dog, fox have no match"),
        (["2", "3", "4"], ["1", "2", "3"], 3, "4 has no match"),  # grades, not places
        (["1", "2", "3"], ["0", "1", "2"], 3, "3 has no match"),
        (["crane", "dog"], ["crane", "Crane", "dog"], 3, None),
        (["CRANE", "dog"], ["crane", "Crane", "dog"], 3, "CRANE has no match"),
        (["Cat", "cat"], ["cat", "dog"], 2, "two of the data's are one of the model's"),
        (["no", "yes"], ["0", "1", "2"], 3, "no, yes have no match"),
        (["no", "yes"], None, 3, "3 classes without names"),
        (["n01440764", "n01443537"], ["tench", "goldfish", "shark"], 3, "have no match"),
    ],
)
def test_what_cannot_be_matched_is_refused_with_both_lists(data, model, outputs, said):
    if said is None:
        assert labels.match(data, model, outputs=outputs) == (0, 2)
        return
    with pytest.raises(InputError) as error:
        labels.match(data, model, outputs=outputs, who="the net", what="the set")
    text = str(error.value)
    assert said in text and f"({', '.join(data)})" in text and "--class-map" in text
    assert model is None or f"({', '.join(model)})" in text


def test_a_users_map_is_by_name_or_by_number_and_may_join_classes():
    names = ["normal", "benign", "malignant"]
    given = {"healthy": "Normal", "fine": 0, "b": "1"}
    assert labels.match(["b", "fine", "healthy", "malignant"], names, outputs=3, given=given) == (
        1,
        0,
        0,
        2,
    )
    assert labels.match(["sick"], None, outputs=2, given={"sick": "1"}) == (1,)
    with pytest.raises(InputError, match=r"names 'lump', and the model has 3 classes \(normal, benign"):
        labels.match(["b"], names, outputs=3, given={"b": "lump"})
    with pytest.raises(InputError, match="names 3, and"):
        labels.match(["b"], names, outputs=3, given={"b": 3})
    with pytest.raises(InputError, match="the class map names c, and the data has b"):
        labels.match(["b"], names, outputs=3, given={"c": 0})
    with pytest.raises(InputError, match="takes DATA=MODEL"):
        labels.pairs(["b"])


# the command line


def test_a_run_is_evaluated_by_the_names_of_its_classes(tmp_path, capsys):
    run = trained(tmp_path)
    other = {"Malignant": 120, "benign": 40}  # sorted the other way round, one class fewer
    accuracy, content = evaluated(run, folders(tmp_path / "two", other, seed=1), tmp_path / "out")
    assert accuracy == 1.0
    assert content["job"]["class_map"] == {"Malignant": "malignant", "benign": "benign"}
    assert content["job"]["classes"] == ["benign", "malignant", "normal"]
    assert "classes-matched" in kinds(content) and "Malignant is malignant" in capsys.readouterr().out


def test_classes_that_the_run_has_not_are_refused_and_can_be_mapped(tmp_path, capsys):
    run = trained(tmp_path)
    healthy = folders(tmp_path / "healthy", {"a_healthy": 200, "benign": 40, "malignant": 120}, seed=1)
    for data in (healthy, folders(tmp_path / "pets", {"cat": 40, "dog": 120, "fox": 200})):
        with pytest.raises(SystemExit):
            main(["evaluate", "--model", str(run), "--data", data, "--out", str(tmp_path / "no")])
        assert "(benign, malignant, normal)" in capsys.readouterr().err and not (tmp_path / "no").exists()
    accuracy, content = evaluated(run, healthy, tmp_path / "out", "--class-map", "a_healthy=normal")
    assert accuracy == 1.0 and content["job"]["class_map"]["a_healthy"] == "normal"
    accuracy, content = evaluated(run, healthy, tmp_path / "number", "--class-map", "a_healthy=2")
    assert accuracy == 1.0


def test_equal_classes_leave_a_job_as_it_was(tmp_path):
    run = trained(tmp_path)
    accuracy, content = evaluated(run, folders(tmp_path / "new", BREAST, seed=1), tmp_path / "out")
    assert accuracy == 1.0 and kinds(content) == [] and "class_map" not in content["job"]


def test_held_out_images_are_matched_too(tmp_path):
    run = trained(tmp_path)
    other = {"Malignant": 120, "benign": 40}
    data = folders(tmp_path / "two", other, n=30, seed=1)
    for i in range(3):  # wrong in the data: without any error no scale is best
        Image.fromarray(np.full((8, 8), 120, np.uint8)).save(tmp_path / "two" / "benign" / f"x{i}.png")
        Image.fromarray(np.full((8, 8), 40, np.uint8)).save(tmp_path / "two" / "Malignant" / f"x{i}.png")
    accuracy, _ = evaluated(run, data, tmp_path / "out", "--recalibrate", "temperature", "--held-out", "40")
    assert accuracy > 0.8
    state, _ = store.read_tensors(tmp_path / "out" / "recalibration.safetensors")
    assert state["k"] > 0.01  # against its labels the best scale is 0


def test_weights_know_their_classes_away_from_their_run(tmp_path):
    run = trained(tmp_path)
    moved = tmp_path / "elsewhere.safetensors"
    moved.write_bytes((run / "model.safetensors").read_bytes())
    data = folders(tmp_path / "two", {"Malignant": 120, "benign": 40}, seed=1)
    accuracy, _ = evaluated("levels", data, tmp_path / "out", "--weights", str(moved))
    assert accuracy == 1.0


def test_a_comparison_matches_and_maps_classes(tmp_path, capsys):
    run = trained(tmp_path)
    data = folders(tmp_path / "two", {"Malignant": 120, "lump": 40}, n=30, seed=1)
    flags = ["--data", data, "--steps", "1", "--eps", "1/255", "--held-out", "20", "--out"]
    with pytest.raises(SystemExit):
        main(["compare", str(run), *flags, str(tmp_path / "no")])
    assert "lump has no match" in capsys.readouterr().err
    main(["compare", str(run), *flags, str(tmp_path / "out"), "--class-map", "lump=benign"])
    import polars as pl

    assert pl.read_parquet(tmp_path / "out" / "comparison.parquet")["accuracy"].to_list() == [1.0]


def test_training_goes_on_from_weights_in_the_order_of_the_new_classes(tmp_path):
    run = trained(tmp_path)
    again = {"Malignant": 120, "Normal": 200, "benign": 40}  # capitals first
    weights = ["--weights", str(run / "model.safetensors")]
    second = trained(tmp_path, again, *weights, name="second")
    assert poise.load(second).class_names == ("Malignant", "Normal", "benign")
    accuracy, _ = evaluated(second, folders(tmp_path / "test", BREAST, seed=1), tmp_path / "out")
    assert accuracy == 1.0
    first, then = (poise.load(r).last.weight for r in (run, second))
    assert torch.allclose(then, first[[1, 2, 0]])
    other = trained(tmp_path, {"cat": 40, "dog": 120, "fox": 200}, *weights, name="other")
    assert not torch.allclose(poise.load(other).last.weight, first, atol=0.1)  # a head of its own


# Python


def loaded(run, tmp_path):
    return poise.load(run), poise.data.load(folders(tmp_path / "two", {"Malignant": 120, "benign": 40}))


def test_python_matches_names_where_both_sides_have_them(tmp_path):
    net, data = loaded(trained(tmp_path), tmp_path)
    attack = poise.attacks.fgsm(eps=1 / 255)
    assert poise.evaluate(net, data, attack).correct.all()
    assert set(poise.evaluate(net, data, attack).y.tolist()) == {0, 1}
    recalibrated = poise.recalibration.Recalibrated(net, nn.Identity())
    assert poise.evaluate(recalibrated, data, attack).correct.all()
    plain = [(x, y) for x, y in data]  # no names: labels as they are
    assert not poise.evaluate(net, plain, attack).correct.any()
    z, y = poise.recalibration.logits_of(net, data)
    assert (z.argmax(dim=1) == y).all()
    pets = poise.data.load(folders(tmp_path / "pets", {"cat": 40, "dog": 120, "fox": 200}))
    with pytest.raises(InputError, match="cat, dog, fox have no match"):
        poise.evaluate(net, pets, attack)


def test_an_image_set_is_relabelled():
    data = ImageSet("two", torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 1]), ("b", "a"))
    found = labels.in_order_of(data, ("a", "b", "c"), outputs=3)
    assert found.y.tolist() == [1, 0, 0] and found.classes == ("a", "b", "c")
    assert labels.in_order_of(data, ("B", "A"), outputs=2) is data
    unnamed = labels.in_order_of(data, None, outputs=3, given={"a": 2, "b": 0})
    assert unnamed.y.tolist() == [0, 2, 2] and unnamed.classes == ("b", "1", "a")
