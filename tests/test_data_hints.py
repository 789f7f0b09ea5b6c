"""The way out that a refusal names is taken here as it is written, and ends in the right numbers."""

import re

import numpy as np
import pytest
import torch

from poise import InputError, attacks, data, evaluate

LEVELS = torch.tensor([[0, 200, 255, 1, 90, 128], [0, 200, 255, 1, 56, 128]] * 2).reshape(4, 1, 2, 3)
Y = torch.tensor([0, 1, 2, 1])
UNIT = LEVELS / 255


def net(x):
    return 3 * x.flatten(1)[:, :3]


def judged(x, y):
    return evaluate(net, [(x, y)], attacks.fgsm(eps=0.01))


def way_out(x=UNIT, y=Y):
    """The expression after `use` in the refusal of this batch."""
    with pytest.raises(InputError) as caught:
        judged(x, y)
    assert "\n" not in str(caught.value)
    return re.search(r": use (.+?)(?: if .*|, in .*|, or .*)?$", str(caught.value)).group(1)


@pytest.mark.parametrize(
    "x",
    [
        LEVELS,
        LEVELS.byte(),
        LEVELS.short(),
        LEVELS.float(),
        LEVELS.to(torch.uint16) * 257,
        2 * UNIT - 1,
        UNIT.numpy(),
    ],
    ids=["int64", "uint8", "int16", "0..255", "uint16", "-1..1", "numpy"],
)
def test_pixels_of_another_scale_by_the_hint(x):
    found = eval(way_out(x=x), {"x": x, "torch": torch})
    torch.testing.assert_close(found, UNIT, atol=1e-6, rtol=0)
    assert len(judged(found, Y)) == 4


@pytest.mark.parametrize(
    "y",
    [
        Y + 1,
        torch.eye(3)[Y],
        torch.eye(3, dtype=torch.int64)[Y],
        0.4 * torch.eye(3)[Y] + 0.2,
        Y.float(),
        Y[:, None].float(),
        Y.tolist(),
        Y.numpy(),
    ],
    ids=["from 1", "one-hot", "whole one-hot", "soft", "floats", "column", "list", "numpy"],
)
def test_labels_of_another_form_by_the_hint(y):
    out = way_out(y=y)
    found = eval(out, {"y": y[:, 0] if out == "y.long()" and y.ndim == 2 else y, "torch": torch})
    assert judged(UNIT, found).y.tolist() == Y.tolist()


def test_colours_last_by_the_hint():
    x = torch.rand(4, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    assert len(judged(eval(way_out(x=x), {"x": x}), Y)) == 4


def test_the_image_that_is_not_finite_is_named_by_its_place_in_the_set():
    bad = UNIT.clone()
    bad[2, 0, 1, 1] = np.nan
    with pytest.raises(InputError, match="NaN or infinite pixels in image 6:"):
        evaluate(net, [(UNIT, Y), (bad, Y)], attacks.fgsm(eps=0.01))
    with pytest.raises(InputError, match=r"got \[0, 255\] in image 1:.*Normalize"):
        judged(torch.cat([UNIT[:1], LEVELS[:1].float(), UNIT[2:]]), Y)


def test_the_image_that_makes_a_model_fail_is_named():
    def breaks(x):
        return net(x) / (x[:, 0, 1, 1, None] - 90 / 255)

    with pytest.raises(InputError, match=r"logits for images 0, 2 of its batch"):
        attacks.fgsm(eps=0.01)(breaks, UNIT, Y)


def saved(tmp_path, **changes):
    content = {"test_images": LEVELS[:, 0].numpy().astype(np.uint8), "test_labels": Y.numpy(), **changes}
    np.savez(tmp_path / "set.npz", **content)
    return f"npz:{tmp_path / 'set.npz'}"


def way_of_array(name):
    with pytest.raises(InputError) as caught:
        data.load(name)
    return re.search(r": save (.+?)(?: if .*|, .*)?$", str(caught.value)).group(1), str(caught.value)


GREYS = LEVELS[:, 0].numpy()


@pytest.mark.parametrize(
    "images",
    [
        GREYS,
        GREYS.astype(np.int32),
        GREYS / 255,
        (GREYS / 255).astype(np.float16),
        GREYS.astype(np.float64),
        GREYS / 127.5 - 1,
        257 * GREYS,
    ],
    ids=["int64", "int32", "0..1", "half", "0..255", "-1..1", "16 bits"],
)
def test_arrays_of_another_scale_by_the_hint(images, tmp_path):
    """255 * images as bytes, which was the hint for all of them, turns 200 into 56."""
    expression, _ = way_of_array(saved(tmp_path, test_images=images))
    found = data.load(saved(tmp_path, test_images=eval(expression, {"images": images, "np": np})))
    assert found.pixels[:, 0].tolist() == GREYS.tolist()


@pytest.mark.parametrize(
    "labels",
    [
        Y.numpy() + 1,
        np.eye(3)[Y],
        np.eye(3, dtype=int)[Y],
        Y.numpy().astype(float),
        Y[:, None].numpy() * 1.0,
    ],
    ids=["from 1", "one-hot", "whole one-hot", "floats", "column of floats"],
)
def test_arrays_of_labels_by_the_hint(labels, tmp_path):
    expression, _ = way_of_array(saved(tmp_path, test_labels=labels))
    found = data.load(saved(tmp_path, test_labels=eval(expression, {"labels": labels})))
    assert found.y.tolist() == Y.tolist()


def test_labels_from_1_beside_class_names(tmp_path):
    expression, said = way_of_array(
        saved(tmp_path, test_labels=Y.numpy() + 1, classes=np.array(list("abc")))
    )
    assert expression == "labels - 1" and "[0, 2]" in said and "[1, 3]" in said


def test_an_array_with_nan_names_its_images(tmp_path):
    with pytest.raises(InputError, match="NaN or infinite values in images 1, 3: leave these out"):
        data.load(saved(tmp_path, test_images=np.where(GREYS == 56, np.nan, GREYS)))


@pytest.mark.parametrize(
    "classes", [np.array("ab"), np.array([["a"], ["b"]]), np.array([b"a", b"b", b"c"])]
)
def test_class_names_that_are_no_texts(classes, tmp_path):
    with pytest.raises(InputError, match=r"classes of .* must hold one text a class"):
        data.load(saved(tmp_path, classes=classes))


def test_labels_beyond_what_64_bits_hold_are_not_turned_negative(tmp_path):
    with pytest.raises(InputError, match="18446744073709551615"):
        data.load(saved(tmp_path, test_labels=np.array([0, 1, 2**64 - 1, 1], np.uint64)))
