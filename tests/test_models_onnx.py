"""Networks in ONNX files, written by hand after onnx.proto: logits by formula, and no gradient."""

import struct

import numpy as np
import pytest
import torch

from poise import InputError, attacks, evaluate, models
from poise.data import ImageSet
from poise.diagnostics import diagnose


def number(n):
    """A protobuf varint."""
    return bytes([n]) if n < 128 else bytes([n % 128 + 128]) + number(n // 128)


def field(tag, value):
    """A field: a whole number, or bytes, text and messages with their length."""
    if isinstance(value, int):
        return number(8 * tag) + number(value)
    value = value.encode() if isinstance(value, str) else value
    return number(8 * tag + 2) + number(len(value)) + value


def port(name, kind, *dims):
    sizes = b"".join(field(1, field(1, d) if isinstance(d, int) else field(2, d)) for d in dims)
    return field(1, name) + field(2, field(1, field(1, kind) + field(2, sizes)))


def floats(name, array):
    dims = b"".join(field(1, d) for d in array.shape)
    return dims + field(2, 1) + field(8, name) + field(9, struct.pack(f"<{array.size}f", *array.flatten()))


def linear_onnx(file, w, b, *, batch="n", shape=(1, 2, 2), kind=1, metadata=None, end=None, more=()):
    """z = flatten(x) @ w + b as an ONNX file; with `end`, that function of it, and `more` outputs."""
    flatten = field(1, "x") + field(2, "f") + field(4, "Flatten")
    gemm = b"".join(field(1, name) for name in "fwb") + field(2, "z") + field(4, "Gemm")
    last = b"" if end is None else field(1, "z") + field(2, "p") + field(4, end)
    graph = field(1, flatten) + field(1, gemm) + (field(1, last) if last else b"") + field(2, "linear")
    graph += field(5, floats("w", w)) + field(5, floats("b", b))
    graph += field(11, port("x", kind, batch, *shape)) + field(
        12, port("p" if last else "z", kind, batch, w.shape[1])
    )
    graph += b"".join(field(12, port(*out)) for out in more)
    extra = b"".join(field(14, field(1, k) + field(2, v)) for k, v in (metadata or {}).items())
    file.write_bytes(field(1, 8) + field(8, field(1, "") + field(2, 13)) + field(7, graph) + extra)
    return f"onnx/{file}"


W = np.arange(12, dtype=np.float32).reshape(4, 3) / 8
B = np.array([0.5, -1.0, 0.25], dtype=np.float32)
ABOUT = {"classes": 3, "shape": (1, 2, 2)}


@pytest.mark.parametrize("batch", ["n", 1, 3])
@pytest.mark.parametrize("n", [0, 1, 3, 7])
def test_an_onnx_files_logits_are_those_of_the_formula(batch, n, tmp_path):
    model = models.load(linear_onnx(tmp_path / "net.onnx", W, B, batch=batch), **ABOUT)
    x = torch.rand(n, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    logits = model(x)
    assert logits.shape == (n, 3) and logits.dtype == x.dtype
    torch.testing.assert_close(logits, x.flatten(1) @ torch.tensor(W) + torch.tensor(B))
    assert model(x.double()).dtype == torch.float64


def test_an_onnx_files_metadata_normalise(tmp_path):
    name = linear_onnx(tmp_path / "net.onnx", W, B, metadata={"mean": "[0.5]", "std": "[0.25]"})
    x = torch.rand(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    expected = ((x.flatten(1) - 0.5) / 0.25) @ torch.tensor(W) + torch.tensor(B)
    torch.testing.assert_close(models.load(name, **ABOUT)(x), expected)
    for metadata in ({"mean": "[0.5]"}, {"mean": "half", "std": "[1]"}, {"mean": "0.5", "std": "1"}):
        with pytest.raises(InputError, match="must both be JSON lists"):
            models.load(linear_onnx(tmp_path / "bad.onnx", W, B, metadata=metadata), **ABOUT)


def test_an_onnx_files_fingerprint_is_that_of_its_bytes(tmp_path):
    one, same, other = (
        models.fingerprint(models.load(linear_onnx(tmp_path / f"{i}.onnx", W * scale, B), **ABOUT))
        for i, scale in enumerate((1, 1, 2))
    )
    assert one == same != other


def test_an_onnx_file_is_audited_and_diagnosed(tmp_path):
    model = models.load(linear_onnx(tmp_path / "net.onnx", W, B), **ABOUT)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (8, 1, 2, 2), generator=generator, dtype=torch.uint8)
    data = ImageSet("eight", pixels, torch.arange(8) % 3, ("a", "b", "c"))
    attack = attacks.ATTACKS["square_underconfidence"](eps=0.1, queries=5)
    records = evaluate(model, data, attack)
    assert len(records.y) == 8
    x, y = next(iter(data))
    assert all(
        f.kind not in ("randomised", "batch-dependent") for f in diagnose(model, {"square": attack}, x, y)
    )


def test_an_onnx_file_is_attacked_without_gradients_and_refuses_those_with(tmp_path):
    model = models.load(linear_onnx(tmp_path / "net.onnx", W, B), **ABOUT)
    x = torch.rand(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    attack = attacks.ATTACKS["square_underconfidence"](eps=0.1, queries=30)
    x_adv = attack(model, x, generator=torch.Generator().manual_seed(0))
    assert (model(x_adv).softmax(1).amax(1) < model(x).softmax(1).amax(1)).any()
    with pytest.raises(
        InputError, match=r"black box and has no gradients: name attacks that need none \(square"
    ):
        attacks.pgd(steps=2)(model, x)


@pytest.mark.parametrize(
    ("options", "about", "message"),
    [
        ({}, {"classes": 4}, "has 3 classes, not 4"),
        ({}, {"shape": (3, 2, 2)}, r"input of shape \('n', 1, 2, 2\), the images are \(3, 2, 2\)"),
        ({"shape": (4,)}, {}, r"input of shape \('n', 4\), the images are"),
        ({"weights": "x.pt"}, {}, "others cannot be put in"),
    ],
)
def test_an_onnx_file_that_does_not_fit_is_refused(options, about, message, tmp_path):
    weights = options.pop("weights", None)
    name = linear_onnx(tmp_path / "net.onnx", W, B, **options)
    with pytest.raises(InputError, match=message):
        models.load(name, **{**ABOUT, **about}, weights=weights)


def test_what_is_no_onnx_file_is_refused(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"no such thing")
    with pytest.raises(InputError, match="no ONNX file that onnxruntime reads"):
        models.load(f"onnx/{tmp_path / 'net.onnx'}", **ABOUT)
    with pytest.raises(InputError, match="no ONNX file at"):
        models.load(f"onnx/{tmp_path / 'none.onnx'}", **ABOUT)


# what it returns


@pytest.mark.parametrize("batch", ["n", 1, 4])
def test_a_softmax_at_the_end_is_told_of_and_undone(batch, tmp_path):
    about = {"classes": 3, "shape": (1, 2, 2)}
    plain = models.load(linear_onnx(tmp_path / "z.onnx", W, B, batch=batch), **about)
    name = linear_onnx(tmp_path / "p.onnx", W, B, batch=batch, end="Softmax")
    with pytest.warns(UserWarning, match="ends in a softmax: the logarithms"):
        model = models.load(name, **about)
    x, y = torch.rand(8, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(8).long()
    torch.testing.assert_close(model(x).softmax(1), plain(x).softmax(1), rtol=0, atol=1e-6)
    attack = attacks.square(eps=0.1, queries=5)
    ours, theirs = (evaluate(net, [(x, y)], attack) for net in (model, plain))
    torch.testing.assert_close(ours.attacked, theirs.attacked, rtol=0, atol=1e-6)


def test_a_sigmoid_at_the_end_is_refused(tmp_path):
    model = models.load(linear_onnx(tmp_path / "s.onnx", W, B, end="Sigmoid"), **ABOUT)
    x, y = torch.rand(8, 1, 2, 2), torch.zeros(8).long()
    with pytest.raises(InputError, match="as after a sigmoid"):
        evaluate(model, [(x, y)], attacks.square(eps=0.1, queries=5))


def test_of_several_outputs_the_logits_are_taken_by_their_shape(tmp_path):
    more = [("f", 1, "n", 4)]
    with pytest.raises(InputError, match=r"no single output of logits .* z .* f tensor"):
        models.load(linear_onnx(tmp_path / "two.onnx", W, B, more=more), **ABOUT)
    deep = [("x", 1, "n", 1, 2, 2)]
    net = models.load(linear_onnx(tmp_path / "deep.onnx", W, B, more=deep), **ABOUT)
    x = torch.rand(3, 1, 2, 2)
    expected = x.flatten(1) @ torch.from_numpy(W) + torch.from_numpy(B)
    torch.testing.assert_close(net(x), expected)


def test_a_file_that_fails_on_the_images_is_refused_before_the_work(tmp_path):
    """Its input says any size, its weights fit 2×2 alone."""
    name = linear_onnx(tmp_path / "net.onnx", W, B, shape=(1, "h", "w"))
    with pytest.raises(InputError, match=r"fails on images of shape \(1, 5, 5\)"):
        models.load(name, classes=3, shape=(1, 5, 5))
