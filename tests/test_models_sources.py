"""Models by prefix: torchvision's, RobustBench's, a user's own file; packages that are not installed."""

import sys
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torchvision.models import _api, get_model

from poise import InputError, models
from poise.cli import main
from poise.models import SOURCES

SMALL = (3, 32, 32)


class Tiny(nn.Module):
    """Three numbers of an image to logits; in training mode it refuses a single image."""

    def __init__(self, classes):
        super().__init__()
        self.fc, self.norm = nn.Linear(3, classes), nn.BatchNorm1d(3)

    def forward(self, x):
        return self.fc(self.norm(x.mean(dim=(2, 3))))


# names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tim/resnet18", "unknown source of models 'tim': did you mean timm"),
        ("torchvision/resnet81", "unknown torchvision model 'resnet81': did you mean resnet"),
        ("torchvision/fcn_resnet50", "unknown torchvision model"),  # it segments
    ],
)
def test_unknown_names_are_answered_with_the_nearest(name, message):
    with pytest.raises(InputError, match=message):
        models.load(name, shape=SMALL)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("timm/resnet18", "timm", "timm"),
        ("hf/owner/name", "transformers", "hf"),
        ("onnx/net.onnx", "onnxruntime", "onnx"),
        ("robustbench/Standard", "robustbench", "robustbench"),
    ],
)
def test_a_missing_package_is_answered_with_its_extra(name, package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(InputError) as refusal:
        models.load(name, shape=SMALL)
    assert str(refusal.value) == f"{name} needs the package {package}: pip install 'poise[{extra}]'"


def test_what_a_package_itself_lacks_is_not_taken_for_the_package(monkeypatch, tmp_path):
    (tmp_path / "robustbench.py").write_text("import there_is_no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "robustbench", raising=False)
    with pytest.raises(ModuleNotFoundError, match="there_is_no_such_package"):
        models.load("robustbench/Standard", shape=SMALL)


@pytest.mark.parametrize("source", [s for s in SOURCES if s not in ("onnx", "robustbench")])
def test_images_that_are_neither_grey_nor_rgb_are_refused(source, monkeypatch):
    for package in ("timm", "transformers"):  # the check needs neither
        monkeypatch.setitem(sys.modules, package, SimpleNamespace())
    with pytest.raises(InputError, match="RGB or grey images, got 4 channels"):
        models.load(f"{source}/resnet18", shape=(4, 32, 32))


def test_published_weights_of_our_own_nets_are_refused():
    with pytest.raises(InputError, match="lenet has no published weights: give --weights FILE"):
        models.load("lenet", weights="pretrained")


# torchvision


@pytest.fixture
def download(monkeypatch):
    """A stand-in for the file that torchvision downloads, and what was asked for."""
    torch.manual_seed(0)
    state = get_model("mobilenet_v3_small").state_dict()
    asked = []

    def fake(url, **options):
        asked.append((url, options))
        return {name: value.clone() for name, value in state.items()}

    monkeypatch.setattr(_api, "load_state_dict_from_url", fake)
    return SimpleNamespace(state=state, asked=asked)


def test_nothing_is_downloaded_unless_asked_for(download):
    models.load("torchvision/mobilenet_v3_small", classes=1000, shape=SMALL)
    assert not download.asked


def test_published_weights_come_whole_with_their_own_classes(download):
    net = models.load("torchvision/mobilenet_v3_small", classes=1000, shape=SMALL, weights="pretrained")
    (asked,) = download.asked
    assert "mobilenet_v3_small" in asked[0] and asked[1]["check_hash"]
    assert all(torch.equal(value, download.state[name]) for name, value in net.net.state_dict().items())


def test_published_weights_get_a_new_head_where_it_is_asked_for(download):
    name, about = "torchvision/mobilenet_v3_small", {"classes": 5, "shape": SMALL, "weights": "pretrained"}
    with pytest.raises(InputError, match=r"classifier\.3\.weight \(1000×1024 there, 5×1024 in the model"):
        models.load(name, **about)
    net = models.load(name, **about, new_head=True)
    assert models.head(net)[0] == "net.classifier.3" and net(torch.zeros(1, *SMALL)).shape == (1, 5)
    for key, value in net.net.state_dict().items():
        assert torch.equal(value, download.state[key]) != key.startswith("classifier.3.")


@pytest.mark.parametrize(("name", "size"), [("googlenet", 64), ("inception_v3", 80)])
def test_published_weights_with_a_second_head_come_without_it(name, size, monkeypatch):
    torch.manual_seed(0)
    state = get_model(name, aux_logits=True, init_weights=False, num_classes=1000).state_dict()
    monkeypatch.setattr(_api, "load_state_dict_from_url", lambda url, **options: dict(state))
    net = models.load(f"torchvision/{name}", classes=1000, shape=(3, size, size), weights="pretrained")
    assert all(torch.equal(value, state[key]) for key, value in net.net.state_dict().items())
    assert not any(key.lower().startswith("aux") for key in net.net.state_dict())
    assert net.net.transform_input


def test_without_a_network_the_address_of_the_weights_is_named(monkeypatch):
    def fail(url, **options):
        raise URLError("no route to host")

    monkeypatch.setattr(_api, "load_state_dict_from_url", fail)
    with pytest.raises(InputError, match=r"no route to host.*https://.*mobilenet.*--weights FILE"):
        models.load("torchvision/mobilenet_v3_small", classes=1000, shape=SMALL, weights="pretrained")


@pytest.mark.parametrize("name", ["squeezenet1_1", "googlenet", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_the_head_has_the_classes_and_training_gives_logits_too(name):
    net = models.load(f"torchvision/{name}", classes=6, shape=(1, 64, 64))
    layer = models.head(net)[1]
    assert layer.weight.shape[0] == 6
    assert net.train()(torch.rand(2, 1, 64, 64)).shape == (2, 6)  # no second head


def test_images_that_are_too_small_for_the_net_are_refused_at_once():
    with pytest.raises(
        InputError, match=r"fails on an image of shape \(3, 8, 8\): it was trained on 224×224"
    ):
        models.load("torchvision/squeezenet1_1", shape=(3, 8, 8))


# a user's own file

OWN = """
from dataclasses import dataclass
import neighbour
from torch import nn
trace = __name__

@dataclass
class About:
    classes: "int"

def build(*, classes, shape):
    import neighbour_later
    size = shape[0] * shape[1] * shape[2]  # in training mode BatchNorm1d refuses a single image
    return nn.Sequential(nn.Dropout(), nn.Flatten(), nn.Linear(size, classes), nn.BatchNorm1d(classes))

def short(*, classes, shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes - 1))

def nothing(*, classes, shape):
    return lambda x: x

number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    folder = tmp_path / "with space é"
    folder.mkdir()
    (folder / "neighbour.py").write_text("")
    (folder / "neighbour_later.py").write_text("")
    (folder / "mine.py").write_text(OWN, encoding="utf-8")
    yield folder / "mine.py"
    for name in ("neighbour", "neighbour_later"):
        sys.modules.pop(name, None)


def test_a_users_function_builds_the_model(own):
    path = list(sys.path)
    net = models.load(f"{own}:build", classes=4, shape=SMALL)
    assert net(torch.zeros(2, *SMALL)).shape == (2, 4) and not net.training and not net[0].training
    assert sys.path == path


def test_the_file_is_read_again_each_time_and_weights_fit_in(own, tmp_path):
    first = models.load(f"{own}:build", classes=4, shape=SMALL)
    torch.save(first.state_dict(), tmp_path / "w.pt")
    again = models.load(f"{own}:build", classes=4, shape=SMALL, weights=tmp_path / "w.pt")
    assert torch.equal(again[2].weight, first[2].weight)
    own.write_text(OWN.replace("nn.Dropout()", "nn.Identity()"), encoding="utf-8")
    assert isinstance(models.load(f"{own}:build", classes=4, shape=SMALL)[0], nn.Identity)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("absent", "has no function 'absent'"),
        ("number", "has no function 'number'"),
        ("nothing", "must return an nn.Module, got function"),
        ("short", r"answers one image with \(1, 3\), logits of shape \(1, 4\) are needed"),
    ],
)
def test_what_is_no_model_is_refused(own, function, message):
    with pytest.raises(InputError, match=message):
        models.load(f"{own}:{function}", classes=4, shape=SMALL)


def test_a_file_that_is_not_there_is_refused():
    with pytest.raises(InputError, match=r"no Python file at .there/is/none\.py"):
        models.load("there/is/none.py:build")


# RobustBench


@pytest.fixture
def robustbench(monkeypatch):
    """A stand-in that has one model and keeps what it was asked for."""
    asked = []

    def load_model(model_name, dataset, threat_model, model_dir):
        asked.append((model_name, dataset, threat_model))
        if model_name != "Standard":
            raise KeyError(model_name)
        return Tiny({"cifar10": 10, "cifar100": 100}[dataset]).train()

    monkeypatch.setitem(sys.modules, "robustbench", SimpleNamespace(load_model=load_model))
    return asked


@pytest.mark.parametrize(
    ("name", "classes", "asked"),
    [
        ("Standard", 10, ("Standard", "cifar10", "Linf")),
        ("Standard", 100, ("Standard", "cifar100", "Linf")),
        ("cifar100/L2/Standard", 100, ("Standard", "cifar100", "L2")),
    ],
)
def test_a_robustbench_model_is_asked_for_by_data_threat_and_name(name, classes, asked, robustbench):
    net = models.load(f"robustbench/{name}", classes=classes, shape=SMALL)
    assert robustbench == [asked] and not net.training


@pytest.mark.parametrize(
    ("name", "classes", "message"),
    [
        ("Unknown", 10, "robustbench/Unknown cannot be had: KeyError"),
        ("Standard", 7, "no data set of 7 classes"),
        ("cifar10/Standard", 10, "neither NAME nor DATASET/THREAT/NAME"),
        ("cifar10/Linf/Standard", 7, r"answers one image with \(1, 10\)"),
    ],
)
def test_a_robustbench_model_that_does_not_fit_is_refused(name, classes, message, robustbench):
    with pytest.raises(InputError, match=message):
        models.load(f"robustbench/{name}", classes=classes, shape=SMALL)


def test_which_names_stand_for_trained_models():
    trained = {"hf/a/b", "onnx/f.onnx", "robustbench/Standard", "dir/file.py:build", "file.py:build"}
    fresh = {"lenet", "torchvision/resnet50", "timm/resnet18"}
    assert {name for name in trained | fresh if models.comes_with_weights(name)} == trained


# paths


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "{}/w.pt",
            r"is a file .*: if it has weights, name their network too: --model NAME --weights .*w\.pt",
        ),
        ("{}/net.onnx", "name it as onnx/"),
        ("{}/net.py", r"name the function in it .*net\.py:FUNCTION"),
        ("{}/run", "is a run folder: load it by poise"),
        ("{}/hub", "name it as hf/"),
        ("{}/absent/w.pt", "there is no run folder and no file at"),
        ("runs/uat-smoth", "there is no run folder and no file at 'runs/uat-smoth'"),
        ("../runs", "there is no run folder and no file at"),
        ("~/runs", "there is no run folder and no file at"),
        ("absent.safetensors", "there is no run folder and no file at"),
        ("tim/resnet18", "did you mean timm"),
    ],
)
def test_a_path_is_answered_with_what_could_be_written(name, message, tmp_path):
    for file in ("w.pt", "net.onnx", "net.py", "run/job.json", "hub/config.json"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("{}")
    with pytest.raises(InputError, match=message):
        models.load(name.format(tmp_path), shape=SMALL)


# what a user's function takes and its model returns

FUNCTIONS = """
from torch import nn

class Net(nn.Module):
    def __init__(self, classes, broken=False):
        super().__init__()
        self.fc, self.broken = nn.Linear(3, classes), broken

    def forward(self, x):
        if self.broken:
            self.helper()
        return {"logits": self.fc(x.mean(dim=(2, 3))), "features": x}

    def helper(self):
        raise RuntimeError("the belt is torn")

def nothing():
    return Net(4)

def other(num_classes, size):
    return Net(num_classes)

def more(classes, shape, width):
    return Net(classes)

def keywords(*, classes, shape, width=3):
    return Net(classes)

def anything(**options):
    return Net(options["classes"])

def single(classes, shape):
    return Net(1)

def broken(classes, shape):
    return Net(classes, broken=True)
"""


@pytest.fixture
def functions(tmp_path):
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    return f"{tmp_path / 'functions.py'}:"


@pytest.mark.parametrize("function", ["nothing", "other", "more"])
def test_a_function_of_another_signature_is_told_the_right_one(function, functions):
    with pytest.raises(InputError, match=rf"write def {function}\(\*, classes, shape\)"):
        models.load(functions + function, classes=4, shape=SMALL)


@pytest.mark.parametrize("function", ["keywords", "anything"])
def test_a_function_that_takes_both_may_take_more_and_its_logits_are_found(function, functions, tmp_path):
    net = models.load(functions + function, classes=4, shape=SMALL)
    assert net(torch.zeros(2, *SMALL)).shape == (2, 4)
    torch.save({"fc.weight": torch.ones(4, 3), "fc.bias": torch.zeros(4)}, tmp_path / "w.pt")
    net = models.load(functions + function, classes=4, shape=SMALL, weights=tmp_path / "w.pt")
    assert net(torch.ones(1, *SMALL)).tolist() == [[3.0] * 4]


def test_a_users_single_logit_is_answered_with_the_way_out(functions):
    with pytest.raises(InputError, match=r"TwoClasses\(model\) makes two"):
        models.load(functions + "single", classes=2, shape=SMALL)


def test_an_error_in_a_users_model_keeps_its_place(functions, capsys, tmp_path):
    flags = ["--data", "digits", "--images", "10", "--attacks", "pgd", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main(["evaluate", "--model", functions + "broken", *flags])
    error = capsys.readouterr().err
    assert "in helper" in error and 'raise RuntimeError("the belt is torn")' in error
    assert error.rstrip().splitlines()[-1].startswith("poise: ") and "the belt is torn" in error
    with pytest.raises(SystemExit):
        main(["evaluate", "--model", "lenet", "--weights", str(tmp_path / "functions.py"), *flags])
    assert "Traceback" not in capsys.readouterr().err
