"""Models: their shapes, their weights from files, and contracts that each of the table keeps."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from poise import InputError, models
from poise.models import MODELS, Normalize


def write(file, state):
    """A state dict in the format that the file's name promises."""
    if file.suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save(state, file)
    return file


def equal_states(one, other):
    """Whether two models hold the same bits under the same names."""
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# every model


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


def test_models_come_in_evaluation_mode(name):
    assert not any(module.training for module in models.load(name).modules())


def seeded(name, **options):
    """The model with the weights that seed 0 draws."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return models.load(name, **options)


@pytest.mark.parametrize(("classes", "shape"), [(10, (1, 12, 12)), (2, (3, 16, 16))])
def test_logits_are_finite_and_pass_gradients_to_every_image(name, classes, shape):
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    logits = seeded(name, classes=classes, shape=shape)(x)
    assert logits.shape == (4, classes) and torch.isfinite(logits).all()
    assert ((logits.sum(dim=1) - 1).abs() > 1e-3).any()  # logits, not probabilities
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), x)
    assert torch.isfinite(gradient).all()
    assert (gradient.flatten(1).abs().amax(dim=1) > 0).all()


def test_weights_survive_a_file(name, tmp_path):
    model = models.load(name, classes=3)
    again = models.load(name, classes=3, weights=write(tmp_path / "w.safetensors", model.state_dict()))
    assert equal_states(model, again)
    assert not any(module.training for module in again.modules())


def test_a_model_has_fresh_weights_or_those_of_a_state_dict(tmp_path):
    model, other = models.load("lenet"), models.load("lenet")
    assert not equal_states(model, other)
    models.load_weights(other, write(tmp_path / "w.pt", model.state_dict()))
    assert equal_states(model, other)


# LeNet


@pytest.mark.parametrize(
    ("shape", "flat"),  # what two halvings leave of 16 channels, counted by hand
    [((1, 28, 28), 16 * 5 * 5), ((1, 8, 8), 16 * 2 * 2), ((3, 32, 32), 16 * 6 * 6)],
)
def test_lenet_has_the_parameters_of_lenet(shape, flat):
    convolutions = (25 * shape[0] + 1) * 6 + (25 * 6 + 1) * 16
    linear = (flat + 1) * 120 + (120 + 1) * 84 + (84 + 1) * 10
    model = models.load("lenet", shape=shape)
    assert sum(p.numel() for p in model.parameters()) == convolutions + linear
    assert model(torch.zeros(2, *shape)).shape == (2, 10)


@pytest.mark.parametrize("height", [4, 5, 7, 11, 12, 13, 28])
@pytest.mark.parametrize("width", [4, 6, 11, 12, 31])
def test_lenet_takes_images_of_any_size_from_four_pixels(height, width):
    model = models.load("lenet", classes=5, shape=(2, height, width))
    assert model(torch.zeros(3, 2, height, width)).shape == (3, 5)


@pytest.mark.parametrize("shape", [(1, 3, 28), (1, 28, 3), (1, 1, 1)])
def test_images_that_are_too_small_are_refused(name, shape):
    with pytest.raises(InputError, match=rf"[48]×[48] pixels, got {shape[1]}×{shape[2]}"):
        models.load(name, shape=shape)


def test_a_single_class_is_refused(name):
    with pytest.raises(InputError, match=r"classes must be .* at least 2, got 1"):
        models.load(name, classes=1)


def test_only_nets_without_normalisation_take_other_channels_than_grey_and_rgb(name):
    shape = (2, 16, 16)
    if any(isinstance(module, Normalize) for module in models.load(name).modules()):
        with pytest.raises(InputError, match="got 2 channels"):
            models.load(name, shape=shape)
    else:
        assert models.load(name, shape=shape)(torch.zeros(2, *shape)).shape == (2, 10)


# normalisation


def test_normalize_is_x_minus_mean_over_std_channel_by_channel():
    x = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    out = Normalize(mean, std)(x)
    for c in range(3):
        torch.testing.assert_close(out[:, c], (x[:, c] - mean[c]) / std[c])


def test_a_grey_image_is_repeated_over_the_channels_of_the_mean():
    x = torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    normalize = Normalize([0.1, 0.2, 0.3], [0.5, 0.25, 1.0])
    assert torch.equal(normalize(x), normalize(x.expand(-1, 3, -1, -1)))


def test_normalize_takes_no_room_in_a_state_dict_and_follows_the_model():
    model = nn.Sequential(Normalize([0.5], [0.25]), nn.Flatten(), nn.Linear(4, 2))
    assert set(model.state_dict()) == {"2.weight", "2.bias"}
    assert model.double()(torch.zeros(1, 1, 2, 2, dtype=torch.float64)).dtype == torch.float64


# refusals


@pytest.mark.parametrize(("name", "guess"), [("lenett", "lenet"), ("LeNe", "lenet"), ("le-net5", "lenet")])
def test_unknown_name_is_answered_with_the_nearest_known(name, guess):
    with pytest.raises(InputError, match=f"unknown model '{name}': did you mean {guess}"):
        models.load(name)


def test_a_name_like_no_other_is_answered_with_all_that_are_known():
    with pytest.raises(InputError, match=r"known: .*lenet"):
        models.load("zzz")


@pytest.mark.parametrize("file", ["none.safetensors", "none.pt", "."])
def test_missing_weights_are_refused_by_their_name(file, tmp_path):
    with pytest.raises(InputError, match="no weights at") as refusal:
        models.load("lenet", weights=tmp_path / file)
    assert str(tmp_path / file) in str(refusal.value)


@pytest.mark.parametrize("file", ["weights.safetensors", "weights.pt"])
def test_weights_that_do_not_fit_are_refused_key_by_key(file, tmp_path):
    state = models.load("lenet").state_dict()
    state["head.weight"] = state.pop("11.weight")
    state["0.bias"] = torch.zeros(7)
    with pytest.raises(InputError) as refusal:
        models.load("lenet", weights=write(tmp_path / file, state))
    for part in (str(tmp_path / file), "11.weight", "head.weight", "0.bias"):
        assert part in str(refusal.value)


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def plant(bomb, file, how):
    """A file that runs the bomb when it is read by pickle."""
    payload = {"0.weight": bomb} if how == "torch.save of a dict" else bomb
    if how == "pickle":
        file.write_bytes(pickle.dumps(payload, protocol=2))
    else:
        torch.save(payload, file)


@pytest.mark.parametrize("how", ["pickle", "torch.save", "torch.save of a dict"])
@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "weights.bin", "weights.safetensors"])
def test_a_pickle_that_would_run_code_is_refused_unrun(how, name, tmp_path):
    file, trace = tmp_path / name, tmp_path / "trace"
    plant(Bomb(trace), file, how)
    with pytest.raises(InputError, match=name):
        models.load("lenet", weights=file)
    assert not trace.exists()
    if how == "pickle":
        pickle.loads(file.read_bytes())
        assert trace.exists()  # the bomb was live


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
@pytest.mark.parametrize(
    "content",
    [b"", b"not a file of tensors", b"\x80", b".", b"\x28\x2e", b"PK\x03\x04", b"\x80\x02}q\x00."],
    ids=repr,
)
def test_damaged_weights_are_refused(name, content, tmp_path):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InputError, match=name):
        models.load("lenet", weights=file)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_truncated_weights_are_refused(name, tmp_path):
    file = write(tmp_path / name, models.load("lenet").state_dict())
    whole = file.read_bytes()
    for size in (1, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(InputError, match=name):
            models.load("lenet", weights=file)


@pytest.mark.parametrize("content", [[torch.zeros(1)], 3, None, {1: torch.zeros(1)}], ids=repr)
def test_what_is_no_state_dict_is_refused(content, tmp_path):
    file = tmp_path / "weights.pt"
    torch.save(content, file)
    with pytest.raises(InputError, match=r"weights\.pt"):
        models.load("lenet", weights=file)
