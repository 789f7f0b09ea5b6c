"""Files of weights: containers, first names, what is no weight, and claims of more than there is."""

import resource
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import get_model

from poise import InputError, models


def small(classes=4):
    """A net of two layers with BatchNorm between."""
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, classes))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def save(content, file):
    torch.save(content, file)
    return file


def loaded(content, file):
    """A small net with what a file of that content gives it."""
    net = small()
    models.load_weights(net, save(content, file))
    return net


# containers

KEYS = (
    *("state_dict", "model_state_dict", "model", "net", "network", "module", "params", "params_ema", "ema"),
    *("state_dict_ema", "model_ema", "teacher", "student", "generator", "weights", "G", "classifier"),
    *("net_state_dict", "state", "backbone", "encoder", "target_network"),
)


@pytest.mark.parametrize("key", KEYS)
def test_the_only_state_dict_is_taken_from_wherever_it_is_kept(key, tmp_path):
    state = small().state_dict()
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(5, 6)}}, "param_groups": [{"lr": 0.1}]}
    content = {"epoch": 3, key: state, "optimizer": optimizer, "best": 0.5, "args": None}
    assert same(loaded(content, tmp_path / "w.pt").state_dict(), state)
    assert same(loaded({"checkpoint": content}, tmp_path / "w.pt").state_dict(), state)


@pytest.mark.parametrize("prefix", ["backbone.", "encoder.", "network.", "ema.", "module.backbone."])
def test_prefixes_that_all_keys_have_count_for_nothing(prefix, tmp_path):
    state = small().state_dict()
    renamed = {prefix + name: value for name, value in state.items()}
    assert same(loaded(renamed, tmp_path / "w.pt").state_dict(), state)


def test_of_several_the_one_that_fits_is_taken(tmp_path):
    state = small().state_dict()
    other = nn.Linear(3, 3).state_dict()
    net = loaded({"discriminator": other, "generator": state}, tmp_path / "w.pt")
    assert same(net.state_dict(), state)
    net = loaded({"model": state, "ema": {name: v.clone() for name, v in state.items()}}, tmp_path / "w.pt")
    assert same(net.state_dict(), state)


def test_several_that_fit_are_refused_with_a_way_out_that_works(tmp_path, monkeypatch):
    first, second = small().state_dict(), small().state_dict()
    file = tmp_path / "w.pt"
    with pytest.raises(InputError, match=r"several state dicts, 'params', 'params_ema'") as refusal:
        loaded({"params_ema": second, "params": first}, file)
    (command,) = str(refusal.value).split("e.g. by ")[1:]
    monkeypatch.chdir(tmp_path)
    exec(command, {"torch": torch, "FILE": file})
    net = small()
    models.load_weights(net, tmp_path / "weights.pt")
    assert same(net.state_dict(), first)


def test_the_running_average_of_torch_is_read(tmp_path):
    net = small()
    averaged = torch.optim.swa_utils.AveragedModel(net)
    averaged.update_parameters(net)
    assert same(loaded(averaged.state_dict(), tmp_path / "w.pt").state_dict(), net.state_dict())


def test_a_file_without_a_state_dict_lists_what_it_holds(tmp_path):
    with pytest.raises(InputError, match=r"no state dict.*, but 'epoch' \(int\), 'names' \(list\)$"):
        loaded({"epoch": 3, "names": ["a"]}, tmp_path / "w.pt")


def test_pickled_code_is_refused_in_our_words(tmp_path):
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return open, (str(ran), "w")

    for content in ({"model": small()}, {"model": small().state_dict(), "x": Evil()}):
        with pytest.raises(InputError, match="without running code of its maker") as refusal:
            loaded(content, tmp_path / "w.pt")
        text = str(refusal.value)
        assert "\n" not in text and "issue" not in text and "add_safe_globals" not in text
    assert not ran.exists()


@pytest.mark.parametrize("cut", [0, 1, 10, 300, 900])
def test_a_file_cut_short_is_refused_in_one_line(cut, tmp_path):
    file = save(small().state_dict(), tmp_path / "w.pt")
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(InputError, match="cannot be read") as refusal:
        models.load_weights(small(), file)
    assert "weights_only" not in str(refusal.value) and "issue" not in str(refusal.value)


def test_arrays_in_an_npz_and_a_bin_file_are_read(tmp_path):
    state = small().state_dict()
    np.savez(tmp_path / "w.npz", **{name: value.numpy() for name, value in state.items()})
    save(state, tmp_path / "pytorch_model.bin")
    for name in ("w.npz", "pytorch_model.bin"):
        net = small()
        models.load_weights(net, tmp_path / name)
        assert same(net.state_dict(), state)


def test_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    state = small().state_dict()
    save(state, tmp_path / "w.pt")
    net = small()
    models.load_weights(net, "~/w.pt")
    assert same(net.state_dict(), state)


# first names of torchvision's


def test_torchvisions_first_densenet_files_fit(tmp_path):
    torch.manual_seed(0)
    state = get_model("densenet121", num_classes=3).state_dict()
    old = {
        name.replace("norm1", "norm.1").replace("norm2", "norm.2").replace("conv1", "conv.1")
        .replace("conv2", "conv.2"): value
        for name, value in state.items()
    }  # fmt: skip
    assert old.keys() != state.keys()
    net = models.load(
        "torchvision/densenet121", classes=3, shape=(3, 32, 32), weights=save(old, tmp_path / "w.pth")
    )
    assert same(net.net.state_dict(), state)


def test_torchvisions_first_vit_files_fit(tmp_path):
    torch.manual_seed(0)
    state = get_model("vit_b_32", num_classes=3, image_size=32).state_dict()
    old = {
        n.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): v for n, v in state.items()
    }
    assert old.keys() != state.keys()
    net = models.load(
        "torchvision/vit_b_32", classes=3, shape=(3, 32, 32), weights=save(old, tmp_path / "w.pth")
    )
    assert same(net.net.state_dict(), state)


@pytest.mark.parametrize(("name", "size"), [("googlenet", 64), ("inception_v3", 80)])
def test_heads_for_training_only_are_left_out(name, size, tmp_path):
    torch.manual_seed(0)
    state = get_model(name, aux_logits=True, init_weights=False, num_classes=3).state_dict()
    file = save({f"module.{key}": value for key, value in state.items()}, tmp_path / "w.pth")
    net = models.load(f"torchvision/{name}", classes=3, shape=(3, size, size), weights=file)
    assert all(torch.equal(value, state[key]) for key, value in net.net.state_dict().items())
    with pytest.raises(InputError, match="unexpected: aux"):
        models.load_weights(small(), save({"aux.weight": torch.zeros(1)}, tmp_path / "w.pth"))


# what is no weight


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64])
def test_weights_that_are_no_real_numbers_are_refused(dtype, tmp_path):
    state = {**small().state_dict(), "1.weight": torch.ones(5, 6).to(dtype)}
    match = rf"of another kind: 1\.weight \({dtype} there, torch.float32 in the model\)"
    with pytest.raises(InputError, match=match):
        loaded(state, tmp_path / "w.pt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_in_another_precision_are_taken(dtype, tmp_path):
    state = {name: value.to(dtype) if value.is_floating_point() else value
             for name, value in small().state_dict().items()}  # fmt: skip
    net = loaded(state, tmp_path / "w.pt")
    assert torch.equal(net[1].weight, state["1.weight"].float())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_weights_that_are_not_finite_are_refused_by_name(value, tmp_path):
    bad = torch.ones(5, 6, dtype=torch.float64)
    bad[2, 3] = value
    state = {**small().state_dict(), "1.weight": bad}
    net = small()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(InputError, match=r"1 of the 30 numbers of 1\.weight are NaN or infinite"):
        models.load_weights(net, save(state, tmp_path / "w.pt"))
    assert same(net.state_dict(), before)


def test_statistics_that_are_nan_are_refused(tmp_path):
    state = {**small().state_dict(), "2.running_var": torch.full((5,), float("nan"))}
    with pytest.raises(InputError, match=r"5 of the 5 numbers of 2\.running_var"):
        loaded(state, tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("sparse", lambda: torch.ones(5, 6).to_sparse()),
        ("sparse", lambda: torch.ones(5, 6).to_sparse_csr()),
        ("without numbers", lambda: torch.ones(5, 6, device="meta")),
        ("quantised", lambda: torch.quantize_per_tensor(torch.ones(5, 6), 0.1, 0, torch.qint8)),
        ("repeats 4 bytes", lambda: torch.ones(1, 1).expand(5, 6)),
    ],
)
def test_tensors_that_are_not_all_there_are_refused(kind, make, tmp_path):
    with pytest.raises(InputError, match=rf"tensor 1\.weight in .* (is )?{kind}"):
        loaded({**small().state_dict(), "1.weight": make()}, tmp_path / "w.pt")


def test_a_container_that_holds_itself_is_refused(tmp_path):
    content = {"epoch": 1}
    content["state_dict"] = content
    with pytest.raises(InputError, match="no state dict"):
        loaded(content, tmp_path / "w.pt")


def test_tied_weights_are_taken(tmp_path):
    shared = torch.rand(5)
    net = loaded({**small().state_dict(), "1.bias": shared, "2.bias": shared}, tmp_path / "w.pt")
    assert torch.equal(net[1].bias, shared) and torch.equal(net[2].bias, shared)


# more than there is


def peak():
    """Megabytes that this process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def rezipped(file, *, compression=zipfile.ZIP_STORED, edit=lambda data: data):
    """The file packed anew, its pickle edited."""
    with zipfile.ZipFile(file) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(file, "w", compression) as new:
        for name, data in parts.items():
            new.writestr(name, edit(data) if name.endswith("data.pkl") else data)


def claims(data):
    """A pickle whose thousand numbers are said to be a quarter of a milliard."""
    assert data.count(b"M\xe8\x03") >= 2
    return data.replace(b"M\xe8\x03", b"J\x00\x00\x00\x10")


def test_bombs_are_refused_before_they_go_off(tmp_path):
    files = {name: tmp_path / f"{name}.pt" for name in ("zip", "lie", "repeat", "legacy", "array")}
    save({"w": torch.zeros(60_000_000)}, files["zip"])
    rezipped(files["zip"], compression=zipfile.ZIP_DEFLATED)
    save({"w": torch.zeros(1000)}, files["lie"])
    rezipped(files["lie"], edit=claims)
    save({"w": torch.zeros(1).expand(10**11)}, files["repeat"])
    torch.save({"w": torch.zeros(1000)}, files["legacy"], _use_new_zipfile_serialization=False)
    old = files["legacy"].read_bytes()
    files["legacy"].write_bytes(old.replace(b"M\xe8\x03", b"J\x00\x00\x00\x70"))
    count = struct.pack("<i", 2**30)  # bytearray(2**30)
    save({"w": torch.zeros(1), "x": 5}, files["array"])
    rezipped(files["array"], edit=lambda data: data.replace(
        b"K\x05", b"c__builtin__\nbytearray\n(J" + count + b"tR"))  # fmt: skip
    before = peak()
    for file in files.values():
        assert file.stat().st_size < 2**20
        with pytest.raises(InputError, match=r"unpack to|cannot be read|repeats|bytearray"):
            models.read_weights(file)
    assert peak() - before < 100


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 100_000,
        b'{"w":' * 100_000,
        b'{"w":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,16]}}',
        b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,4000000000000]}}',
        b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}',
        b'{"w":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}}',
        b'{"w":{"dtype":"F33","shape":[4],"data_offsets":[0,16]}}',
        b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"v":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        b"\xff\xfe",
        b"",
    ],
    ids=lambda header: repr(header[:30]),
)
def test_a_safetensors_header_that_lies_is_refused(header, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    with pytest.raises(InputError, match="cannot be read"):
        models.read_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize("length", [2**63, 2**40, 17])
def test_a_safetensors_header_of_another_length_is_refused(length, tmp_path):
    save_file({"w": torch.zeros(4)}, tmp_path / "w.safetensors")
    data = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", length) + data[8:])
    with pytest.raises(InputError, match="cannot be read"):
        models.read_weights(tmp_path / "w.safetensors")
