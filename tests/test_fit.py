"""A model and data that do not fit each other are matched by name, refused, or told of."""

import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from timm.data import ImageNetInfo
from torch import nn
from torchvision.models import ResNet50_Weights

import poise
from poise import InputError, labels, models, store
from poise.auditing.fitting import fit_findings
from poise.cli import main
from poise.data import ImageSet
from poise.diagnostics.answers import answer_findings, scale_findings
from poise.preparation import Preparation
from test_models_onnx import linear_onnx

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


def test_all_of_imagenet_stands_in_its_known_order_whatever_names_its_classes_have():
    ours = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    about = ImageNetInfo("imagenet-1k")
    synsets = about.label_names()
    theirs = [about.label_name_to_description(name) for name in synsets]  # Hugging Face's, two called crane
    titled = [f"{a} {b}" for a, b in zip(synsets, ours, strict=True)]
    for data in (synsets, titled):
        for model in (ours, theirs, titled, None):
            assert labels.match(data, model, outputs=1000) == tuple(range(1000))
    few = ["Cardigan", "cardigan", "tench"]  # a dog, a garment
    assert [ours[place] for place in labels.match(few, ours, outputs=1000)] == few
    with pytest.raises(InputError, match="crane has no match"):
        labels.match(["crane", "tench"], theirs, outputs=1000)


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


def test_an_adversarial_set_is_judged_by_the_names_of_its_classes(tmp_path):
    net = poise.load(trained(tmp_path))
    data = poise.data.load(folders(tmp_path / "test", BREAST, seed=1))
    x, y = next(iter(data))
    poise.adversarial_sets.save(tmp_path / "set.npz", x, x, y, eps=0.1, model=net)
    order = [2, 0, 1]
    turned = Levels(3)
    with torch.no_grad():
        for new, old in zip(turned.last.parameters(), net.last.parameters(), strict=True):
            new.copy_(old[order])
    turned.class_names = ["Normal", "benign", "malignant"]
    found = poise.adversarial_sets.load(tmp_path / "set.npz", turned)
    assert found.failed == () and found.records.correct.all()
    assert found.y.tolist() == [(label + 1) % 3 for label in y.tolist()]
    turned.class_names = ["cat", "dog", "fox"]
    with pytest.raises(InputError, match="benign, malignant, normal have no match"):
        poise.adversarial_sets.load(tmp_path / "set.npz", turned)


def test_an_image_set_is_relabelled():
    data = ImageSet("two", torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 1]), ("b", "a"))
    found = labels.as_in(SimpleNamespace(class_names=("a", "b", "c")), data)
    assert found.y.tolist() == [1, 0, 0] and found.classes == ("a", "b", "c")
    assert labels.as_in(SimpleNamespace(class_names=("B", "A")), data) is data
    unnamed = labels.relabel(data, (0, 2), None, outputs=3)
    assert unnamed.y.tolist() == [0, 2, 2] and unnamed.classes == ("b", "1", "a")


# findings


def records(y, answer, k):
    """Records of images of those labels and clean answers among k classes."""
    clean = torch.full((len(y), k), 0.1 / (k - 1)).scatter(1, answer[:, None], 0.9)
    zeros, none = torch.zeros(len(y)), torch.zeros(0, 1, 2, 2)
    return poise.Records(y, clean, clean, zeros, zeros, zeros, zeros, none, none)


def answers(right, wrong, k):
    """So many right and wrong answers, spread evenly over k classes."""
    y = torch.arange(right + wrong) % k
    return records(y, torch.where(torch.arange(len(y)) < right, y, (y + 1) % k), k)


def common(wrong):
    """90 images of one class, so many of which are taken for the other one, and 10 of that."""
    y = (torch.arange(100) >= 90).long()
    return records(y, torch.where(torch.arange(100) < wrong, 1, y), 2)


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        (answers(0, 12, 3), "With the labels in another order (0 as 1, 1 as 2, 2 as 0) it would be 1.000"),
        (answers(5, 5, 2), "guessing among 2 classes gives with probability 0.62"),
        (answers(7, 3, 2), "probability 0.17"),  # P(X >= 7) = 176/1024
        (answers(9, 1, 2), None),  # 11/1024
        (answers(12, 0, 3), None),
        (answers(20, 180, 10), "guessing among 10 classes"),
        (answers(40, 160, 10), None),
        (common(15), "less than by naming the commonest class every time (0.900)"),
        (common(5), None),
    ],
)
def test_accuracy_at_chance_or_below_the_commonest_class_is_a_finding(seen, told):
    found = answer_findings(seen)
    if told is None:
        assert found == []
    else:
        assert [f.kind for f in found] == ["no-better-than-chance"] and told in found[0].seen


def test_a_wrong_order_that_no_name_shows_is_printed_and_reported(tmp_path, capsys):
    run = trained(tmp_path)
    data = folders(tmp_path / "wrong", {"benign": 120, "malignant": 200, "normal": 40})
    accuracy, content = evaluated(run, data, tmp_path / "out")
    assert accuracy == 0.0 and kinds(content) == ["no-better-than-chance"]
    assert "Clean accuracy is 0.000 on 36 images" in capsys.readouterr().out
    assert "Clean accuracy is 0.000" in (tmp_path / "out" / "report.html").read_text()


def test_images_that_the_model_was_trained_on_are_told(tmp_path, capsys):
    data = folders(tmp_path / "all", BREAST, n=20)  # no splits: training and test images are the same
    flags = ["--model", "levels", "--epochs", "1", "--lr", "1e-9", "--out", str(tmp_path / "run")]
    main(["train", "--data", data, *flags])
    _, content = evaluated(tmp_path / "run", data, tmp_path / "out")
    assert kinds(content) == ["trained-on"] and content["findings"][0]["share"] == 1.0
    assert "100.0% of these images are among those that the model was trained on" in capsys.readouterr().out
    _, content = evaluated(tmp_path / "run", data, tmp_path / "few", "--images", "15", "--read.size", "8")
    assert kinds(content) == ["trained-on"]
    new = folders(tmp_path / "new", BREAST, n=20, seed=1)
    _, content = evaluated(tmp_path / "run", new, tmp_path / "fresh")
    assert kinds(content) == []
    for i in range(3):
        (tmp_path / "new" / "benign" / f"{i}.png").write_bytes(
            (tmp_path / "all" / "benign" / f"{i}.png").read_bytes()
        )
    _, content = evaluated(tmp_path / "run", new, tmp_path / "some")
    assert [f["share"] for f in content["findings"]] == [3 / 60]
    weights = ["--weights", str(tmp_path / "run" / "model.safetensors")]
    _, content = evaluated("levels", data, tmp_path / "weights", *weights)
    assert kinds(content) == ["trained-on"]
    main(["train", "--data", new, *flags[:-1], str(tmp_path / "second"), *weights])
    _, content = evaluated(tmp_path / "second", data, tmp_path / "handed-on")
    assert kinds(content) == ["trained-on"]


def test_pixels_in_another_scale_are_told_of_an_onnx_file(tmp_path):
    level = np.float32([40, 120, 200])
    w, b = np.tile(2 * level / 64, (64, 1)), -(level**2)  # the nearest level of the mean pixel in 0 … 255
    data = poise.data.load(folders(tmp_path / "data", BREAST))
    x, y = next(iter(data.batched(36)))
    plain = models.load(
        linear_onnx(tmp_path / "a.onnx", w, b, shape=(1, 8, 8)), classes=3, shape=data.shape
    )
    assert (plain(x).argmax(dim=1) == y).float().mean() < 0.5
    [found] = scale_findings(plain, x, y)
    assert found.kind == "other-scale" and "24 more of 36 images" in found.seen and "0 … 255" in found.seen
    told = {"mean": "[0]", "std": str([1 / 255])}  # the way out that the finding names
    name = linear_onnx(tmp_path / "b.onnx", w, b, shape=(1, 8, 8), metadata=told)
    scaled = models.load(name, classes=3, shape=data.shape)
    assert (scaled(x).argmax(dim=1) == y).all() and scale_findings(scaled, x, y) == []


def test_an_onnx_file_names_its_classes(tmp_path):
    level = np.float32([40, 120, 200]) / 255
    w, b = np.tile(2 * level / 64, (64, 1)), -(level**2)
    data = folders(tmp_path / "data", {"c_normal": 200, "Benign": 40})
    for key in ("class_names", "names"):
        names = (
            '["benign", "malignant", "c normal"]'
            if key == "class_names"
            else str({0: "benign", 1: "malignant", 2: "c normal"})
        )
        name = linear_onnx(tmp_path / f"{key}.onnx", w, b, shape=(1, 8, 8), metadata={key: names})
        out = tmp_path / key
        few = ["--attacks", "square", "--option", "square.queries=20", "--out", str(out)]
        main(["evaluate", "--model", name, "--data", data, *few])
        assert poise.report.read(out).attacked[0].records.correct.all()


# preparation


def test_a_runs_own_size_is_the_default_and_what_was_read_is_noted(tmp_path, capsys):
    run = trained(tmp_path, BREAST, "--read.size", "8", "--read.interpolation", "nearest", size=(20, 10))
    source = store.read_job(run)["source"]
    assert source["name"].startswith("folder:") and source["split"] == "train"
    assert source["read"] == {"size": 8, "interpolation": "nearest", "channels": "grey"}
    data = folders(tmp_path / "test", BREAST, seed=1, size=(12, 30))
    accuracy, content = evaluated(run, data, tmp_path / "out")
    assert accuracy == 1.0 and kinds(content) == []
    assert content["source"]["read"] == source["read"]
    assert content["source"] | {"name": 0} == {
        "name": 0,
        "split": "test",
        "images": None,
        "seed": 0,
        "root": "data",
        "read": source["read"],
    }
    _, content = evaluated(run, data, tmp_path / "other", "--read.interpolation", "bicubic")
    assert kinds(content) == ["other-preparation"]
    with pytest.raises(SystemExit):
        evaluated(run, data, tmp_path / "no", "--read.size", "9")
    assert "prepare them so (--read.size 8)" in capsys.readouterr().err


def test_a_run_on_files_of_one_size_takes_others_at_that_size(tmp_path):
    run = trained(tmp_path, BREAST, size=(8, 8))
    accuracy, content = evaluated(run, folders(tmp_path / "test", BREAST, size=(16, 20)), tmp_path / "out")
    assert accuracy == 1.0 and content["source"]["read"]["size"] == 8


def test_squashing_brings_both_sides_to_their_length(tmp_path):
    left = np.concatenate([np.zeros((8, 8)), np.full((8, 8), 255)], axis=1).astype(np.uint8)
    for kind in "ab":
        (tmp_path / kind).mkdir()
        Image.fromarray(left).save(tmp_path / kind / "x.png")
    read = Preparation(size=4, squash=True, interpolation="nearest")
    x, _ = next(iter(poise.data.load(f"folder:{tmp_path}", preparation=read)))
    assert x[0, 0, 0].tolist() == [0, 0, 1, 1]
    cut, _ = next(iter(poise.data.load(f"folder:{tmp_path}", preparation=Preparation(size=4))))
    assert cut.shape == x.shape and not torch.equal(cut, x)


def vit(folder, names, processor):
    """A tiny ViT in a folder, with classes of those names."""
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    torch.manual_seed(0)
    net = transformers.ViTForImageClassification(config).eval()
    x = torch.rand(60, 3, 32, 32) * torch.rand(60, 3, 1, 1)
    with torch.no_grad():  # every class has its images
        net.classifier.weight.mul_(100)
        net.classifier.bias.sub_(net(2 * x - 1).logits.mean(dim=0))
    net.save_pretrained(folder)
    processor.save_pretrained(folder)
    return net


@pytest.mark.parametrize(
    "processor",
    [
        transformers.ViTImageProcessor(size={"height": 32, "width": 32}),
        transformers.ViTImageProcessor(size={"height": 32, "width": 32}, resample=3),
        transformers.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}),
        transformers.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.8),
        transformers.DeiTImageProcessor(
            size={"height": 36, "width": 36}, crop_size={"height": 32, "width": 32}
        ),
    ],
)
def test_a_hugging_face_models_own_preparation_is_the_default(processor, tmp_path):
    net = vit(tmp_path / "vit", ["cat", "dog", "fox"], processor)
    name = f"hf/{tmp_path / 'vit'}"
    draw = np.random.default_rng(0)
    pictures = [draw.integers(0, 256, (50, 70, 3)).astype(np.uint8) for _ in range(6)]
    for i, pixels in enumerate(pictures):
        folder = tmp_path / "data" / ["cat", "dog", "fox"][i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    data = poise.data.load(f"folder:{tmp_path / 'data'}", preparation=models.preparation(name))
    model = models.load(name, classes=3, shape=data.shape)
    x, _ = next(iter(data))
    theirs = processor([pictures[i] for i in (0, 3, 1, 4, 2, 5)], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        torch.testing.assert_close(model.normalize(x), theirs, rtol=0, atol=0.02)
        torch.testing.assert_close(model(x), net(theirs).logits, rtol=1e-3, atol=1e-3)
    out = tmp_path / "out"
    flags = ["--data", f"folder:{tmp_path / 'data'}", "--attacks", "fgsm", "--eps", "1/255", "--out"]
    main(["evaluate", "--model", name, *flags, str(out)])
    assert store.read_job(out)["source"]["read"]["size"] == 32
    assert not {"other-size", "other-preparation"} & {*kinds(store.read_job(out))}
    main(
        [
            "evaluate",
            "--model",
            name,
            *flags,
            str(tmp_path / "cut"),
            "--read.size",
            "32",
            "--read.resize",
            "33",
        ]
    )
    assert "other-preparation" in kinds(store.read_job(tmp_path / "cut"))


def test_hugging_faces_labels_are_found_in_any_order(tmp_path):
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    vit(tmp_path / "vit", ["fox", "cat", "dog", "cow"], processor)
    name = f"hf/{tmp_path / 'vit'}"
    draw = torch.Generator().manual_seed(1)
    x = torch.rand(60, 3, 32, 32, generator=draw) * torch.rand(60, 3, 1, 1, generator=draw)
    pixels = (255 * x).byte()
    with torch.no_grad():
        answers = models.load(name, classes=None, shape=(3, 32, 32))(pixels.float() / 255).argmax(dim=1)
    assert len(answers.unique()) > 2
    for i, answer in enumerate(answers.tolist()):
        folder = tmp_path / "data" / ["Fox", "cat", "dog", "cow"][answer]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i].permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    flags = ["--data", f"folder:{tmp_path / 'data'}", "--attacks", "fgsm", "--eps", "1/255"]
    main(["evaluate", "--model", name, *flags, "--out", str(tmp_path / "out")])
    assert poise.report.read(tmp_path / "out").attacked[0].records.correct.all()


def test_a_timm_models_own_preparation_is_told(tmp_path):
    found = models.preparation("timm/resnet18.a1_in1k", "pretrained")
    assert (found.size, found.resize, found.interpolation) == (224, 235, "bicubic")
    assert models.preparation("timm/resnet18.a1_in1k", tmp_path / "mine.pt") is None
    net = models.load("timm/resnet18", classes=3, shape=(3, 8, 8))
    data = poise.data.load(folders(tmp_path / "data", BREAST))
    options = {"class_map": None, "seen": None, "held_out": None}
    [finding] = fit_findings(net, data, **options)
    assert finding.kind == "other-preparation" and "short side of 235" in finding.seen
    in_memory = ImageSet(
        "two", torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b")
    )
    [finding] = fit_findings(net, in_memory, **options)
    assert finding.kind == "other-size" and "8×8 pixels" in finding.seen and "224×224" in finding.seen
