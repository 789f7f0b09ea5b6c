"""Adversarial sets: the law of the rounding, what is written and read again, and what is refused."""

import json
import re
import shutil
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from nets import conv_net, images, predictions
from poise import InputError, adversarial_sets, data
from poise.adversarial_sets import load, save, to_8_bits
from poise.attacks import adaptive, auto, pgd

ORDER = {"linf": torch.inf, "l2": 2, "l1": 1}
EPS = 8 / 255
FORMS = ["set.npz", "set"]
each_form = pytest.mark.parametrize("form", FORMS)


def length(delta, norm):
    return torch.linalg.vector_norm(delta.double().flatten(1), ord=ORDER[norm], dim=1)


def eight_bits(n, seed=0, shape=(3, 8, 8)):
    return (255 * images(n, seed, shape=shape)).round() / 255


# rounding

pairs = st.lists(st.tuples(st.integers(0, 255), st.floats(0, 1)), min_size=1, max_size=12)


@given(pairs, st.sampled_from(sorted(ORDER)), st.floats(0, 1.5), st.booleans())
def test_rounding_keeps_levels_budget_and_box_and_stays(pairs, norm, spare, half):
    x = torch.tensor([[[[level / 255 for level, _ in pairs]]]])
    x_adv = torch.tensor([[[[value for _, value in pairs]]]])
    x_adv = x + (x_adv - x) / 20 if half else x_adv  # changes of a few levels, and large ones
    eps = float(length(x_adv - x, norm)) * (1 + spare)
    eps = min(eps, 1.0) if norm == "linf" else eps
    new = to_8_bits(x_adv, x, eps=eps, norm=norm)
    levels = 255 * new.double()
    assert ((levels - levels.round()).abs() < 1e-4).all() and ((new >= 0) & (new <= 1)).all()
    # half an ulp of 1 a pixel from x_adv, and again from the result
    slack = 2 * float(length(torch.full_like(x, 2.0**-24), norm))
    assert length(new - x, norm) <= eps * (1 + 1e-5) + slack
    assert ((new - x_adv).abs() <= 1 / 255 + 1e-6).all()
    assert ((new - x) * (x_adv - x) >= 0).all()  # no pixel on the other side of x
    assert torch.equal(to_8_bits(new, x, eps=eps, norm=norm), new)
    if spare > 0.6 and norm == "linf" and eps * 255 > 2:  # room for every pixel's nearest level
        assert ((new - x_adv).abs() <= 0.5 / 255 + 1e-6).all()


@pytest.mark.parametrize(
    ("norm", "eps", "change", "expected"),
    [
        ("linf", 2.6, [2.6, -2.4, 0.6, -0.4], [2, -2, 1, 0]),  # 3 would be beyond
        ("linf", 8.0, [8.0, -8.0, 7.4, 7.6], [8, -8, 7, 8]),
        ("l1", 5.0, [1.6, 1.7, -1.4, 0.3], [2, 2, -1, 0]),
        ("l1", 5.0, [1.6, -1.7, 1.65, 0.0], [1, -2, 2, 0]),  # 1 + 1 + 1 and room for 2 of the 3
        ("l2", 3.0, [1.9, -1.8, 0.9, 0.0], [2, -2, 1, 0]),  # 4 + 4 + 1 = 9
        ("l2", 2.9, [1.9, -1.8, 0.9, 0.0], [2, -1, 1, 0]),  # 4 + 1 + 1, 3 more is 9 > 8.41
    ],
)
def test_rounding_by_hand(norm, eps, change, expected):
    x = torch.full((1, 1, 1, 4), 100.0) / 255
    x_adv = x + torch.tensor([[[change]]]) / 255
    new = to_8_bits(x_adv, x, eps=eps / 255, norm=norm)
    assert (255 * (new - x)).round().flatten().tolist() == expected


def test_an_image_is_rounded_alone_as_in_a_batch():
    x = eight_bits(8)
    x_adv = (x + 0.03 * (images(8, 1) - 0.5)).clamp(0, 1)
    for norm in ORDER:
        eps = float(length(x_adv - x, norm).max())
        alone = [to_8_bits(x_adv[i : i + 1], x[i : i + 1], eps=eps, norm=norm) for i in range(8)]
        assert torch.equal(torch.cat(alone), to_8_bits(x_adv, x, eps=eps, norm=norm))


@pytest.mark.parametrize(
    ("x", "x_adv", "options", "message"),
    [
        (images(2), images(2), {}, r"x must be 8-bit images .*2 of 2 images \(0, 1\) are not"),
        (
            eight_bits(3),
            1 - eight_bits(3),
            {},
            r"eps=0\.0313725 in linf must be the attack's budget: 3 of 3",
        ),
        (eight_bits(2), eight_bits(3), {}, "one shape"),
        (eight_bits(2), eight_bits(2), {"eps": -1.0}, "eps must be a number"),
        (eight_bits(2), eight_bits(2), {"norm": "l3"}, "unknown norm"),
        (eight_bits(2), eight_bits(2) - 0.1, {}, r"x_adv must lie in \[0, 1\]"),
    ],
)
def test_rounding_refuses(x, x_adv, options, message):
    with pytest.raises(InputError, match=message):
        to_8_bits(x_adv, x, **{"eps": EPS, **options})


# sets


@pytest.fixture(scope="module")
def trained():
    """A small net trained on digits, some test images of 8 bits, and their labels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    train, test = data.load("digits", split="train"), data.load("digits", split="test")
    x, y = (torch.cat(part) for part in zip(*train, strict=True))
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    x, y = next(iter(test))
    x = (255 * x[:100]).round() / 255
    assert (predictions(net, x) == y[:100]).float().mean() > 0.9
    return net.eval(), x, y[:100]


ATTACKS = [
    auto(eps=0.1),
    adaptive(eps=0.1),
    auto(eps=1.0, norm="l2"),
    adaptive(eps=4.0, norm="l1"),
    pgd(eps=0.1),
]


@each_form
@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_a_set_reloads_with_the_same_verdicts(trained, attack, form, tmp_path):
    net, x, y = trained
    keep = not attack.uses_labels
    ball = attack.ball
    eps, norm = ball.eps, type(ball).__name__.lower()
    x_adv = attack(net, x, y if attack.uses_labels else None)
    options = {"eps": eps, "norm": norm, "attack": attack, "keep_labels": keep}
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")  # a label that 8 bits lose is named; see below
        made = save(tmp_path / form, x, x_adv, y, model=net, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load(tmp_path / form, net)
    for name in ("x", "x_adv", "y", "share"):
        assert torch.equal(getattr(made, name), getattr(again, name))
    assert (again.eps, again.norm, again.attack, again.keep_labels) == (eps, norm, repr(attack), keep)
    assert again.fingerprint == made.fingerprint and again.failed == ()
    assert torch.equal(made.records.attacked, again.records.attacked)
    assert (length(again.x_adv - again.x, norm) <= eps * (1 + 1e-5) + 64 * 2.0**-24).all()
    clean, moved = predictions(net, again.x), predictions(net, again.x_adv)
    if keep:
        assert torch.equal(clean, moved)
    else:
        assert ((clean == y) & (moved != y)).float().mean() > 0.3
    float_top, top = (net(v).softmax(dim=1).amax(dim=1).mean() for v in (x_adv, again.x_adv))
    assert abs(float_top - top) < (0.03 if keep else 0.05)  # of a fall by .3 and more
    if form == "set.npz":
        assert torch.equal(again.x_adv, x_adv) and (again.share == 1).all()


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 5, 7)])
def test_pictures_show_what_the_set_holds(shape, tmp_path):
    x = eight_bits(3, shape=shape)
    x_adv = (x + 2 / 255).clamp(0, 1)
    save(tmp_path / "set", x, x_adv, torch.arange(3), eps=EPS)
    for i in range(3):
        pixels = np.array(Image.open(tmp_path / "set" / "x_adv" / f"{i:06d}.png"))
        pixels = pixels[None] if shape[0] == 1 else pixels.transpose(2, 0, 1)
        assert np.array_equal(pixels, (255 * x_adv[i]).round().numpy())
    again = load(tmp_path / "set")
    assert torch.equal((255 * again.x).round(), (255 * x).round()) and again.records is None


class Knife(nn.Module):
    """Two classes divided at level 100.7 of the first pixel: 100 has label 0, 101 has label 1."""

    def forward(self, x):
        lead = (100.7 - 255 * x.flatten(1)[:, :1]) / 3
        return torch.cat([lead, torch.zeros_like(lead)], dim=1)


KNIFE_X = torch.full((3, 1, 1, 2), 90.0) / 255
# .6 above 100 keeps its label and rounds over the edge; .98 of its change ends at 100.4. The second
# stays. The third has lost it in float already: .9 of its change is 100.8, .8 is 99.6.
KNIFE_ADV = torch.tensor([100.6, 97.0, 102.0]).reshape(3, 1, 1, 1).expand(3, 1, 1, 2) / 255


def test_a_label_that_8_bits_lose_goes_back_towards_x(tmp_path):
    y = torch.zeros(3, dtype=torch.long)
    with pytest.warns(UserWarning, match=r"2 of 3 images \(0, 2\) are taken back towards x"):
        made = save(tmp_path / "set", KNIFE_X, KNIFE_ADV, y, eps=0.05, model=Knife())
    torch.testing.assert_close(made.share, torch.tensor([0.98, 1, 0.8]))
    assert (255 * made.x_adv[:, 0, 0, 0]).round().tolist() == [100, 97, 100]
    assert made.failed == () and made.records.kept.all()
    assert torch.equal(load(tmp_path / "set").share, made.share)


def test_it_goes_back_to_x_itself_where_nothing_else_holds(tmp_path):
    x = torch.full((1, 1, 1, 1), 100.0) / 255  # any whole step up loses the label
    x_adv = x + 3 / 255
    with pytest.warns(UserWarning, match="taken back"):
        made = save(tmp_path / "set", x, x_adv, torch.tensor([0]), eps=0.05, model=Knife())
    assert made.share.tolist() == [0] and torch.equal(made.x_adv, made.x)


def test_without_a_model_nothing_is_taken_back(tmp_path):
    y = torch.zeros(3, dtype=torch.long)
    made = save(tmp_path / "set", KNIFE_X, KNIFE_ADV, y, eps=0.05)
    assert (made.share == 1).all() and made.records is None and made.failed == ()
    with pytest.warns(UserWarning, match=r"2 of 3 images \(0, 2\) are not what the set says"):
        assert load(tmp_path / "set", Knife()).failed == (0, 2)


def test_float_images_whose_label_is_lost_are_named(tmp_path):
    y = torch.zeros(3, dtype=torch.long)
    with pytest.warns(UserWarning, match=r"1 of 3 images \(2\) is not what the set says"):
        made = save(tmp_path / "set.npz", KNIFE_X, KNIFE_ADV, y, eps=0.05, model=Knife())
    assert made.failed == (2,) and torch.equal(made.x_adv, KNIFE_ADV)
    with pytest.warns(UserWarning, match=r"1 of 3 images \(2\)"):
        assert load(tmp_path / "set.npz", Knife()).failed == (2,)


def test_an_effect_that_8_bits_undo_is_named(tmp_path):
    # To lose label 0 was the aim; 100.8 does in float, and is 101 in 8 bits; 101.4 becomes 101, 100.72
    # with a budget of 10.8 levels only 100.
    x_adv = torch.tensor([100.8, 101.4, 90.0]).reshape(3, 1, 1, 1).expand(3, 1, 1, 2) / 255
    y = torch.zeros(3, dtype=torch.long)
    made = save(tmp_path / "a", KNIFE_X, x_adv, y, eps=0.05, model=Knife(), keep_labels=False)
    assert made.failed == () and made.records.kept.tolist() == [False, False, True]
    with pytest.warns(UserWarning, match=r"1 of 1 images \(0\) is not what"):
        made = save(
            tmp_path / "b",
            KNIFE_X[:1],
            x_adv[:1],
            y[:1],
            eps=10.85 / 255,
            model=Knife(),
            keep_labels=False,
        )
    assert made.failed == (0,)


def test_another_model_is_noticed(trained, tmp_path):
    net, x, y = trained
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(tmp_path / "set", x, adaptive(eps=0.1)(net, x), y, eps=0.1, model=net)
    other = nn.Sequential(*net[:-1], nn.Linear(32, 10))
    with pytest.warns(UserWarning, match="of 100 images"):
        assert len(load(tmp_path / "set", other).failed) > 50
    cooler = lambda x: 0.8 * net(x)  # noqa: E731  # the same answers, other confidences
    with pytest.warns(UserWarning, match="of 100 images"):
        found = load(tmp_path / "set", cooler)
    assert found.records.kept.all() and len(found.failed) > 50
    turned = lambda x: net(x).roll(1, dims=1)  # noqa: E731  # the same confidences, other answers
    with pytest.warns(UserWarning, match="100 of 100 images"):
        assert load(tmp_path / "set", turned).records.kept.all()
    with pytest.raises(InputError, match="a model of 10 classes, this one has 12"):
        load(tmp_path / "set", nn.Sequential(*net[:-1], nn.Linear(32, 12)))


# refusals


@each_form
def test_a_wrong_budget_is_refused_and_nothing_written(form, tmp_path):
    x = eight_bits(4)
    x_adv = (x + torch.tensor([0.0, 4, 5, 4]).reshape(4, 1, 1, 1) / 255).clamp(0, 1)
    with pytest.raises(InputError, match=r"1 of 4 images \(2\) is farther from x, up to 0\.0196"):
        save(tmp_path / form, x, x_adv, torch.zeros(4, dtype=torch.long), eps=4 / 255)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": eight_bits(4, shape=(2, 8, 8)), "x_adv": eight_bits(4, shape=(2, 8, 8))}, "grey or RGB"),
        ({"x": images(4), "x_adv": images(4)}, "8-bit"),
        ({"y": torch.zeros(3, dtype=torch.long)}, "y must have one label"),
        ({"model": conv_net(0, classes=2)}, r"y must lie in \[0, 1\] for a model of 2 classes"),
        ({"eps": float("nan")}, "eps must be"),
    ],
)
def test_save_refuses(change, message, tmp_path):
    what = {"x": eight_bits(4), "x_adv": eight_bits(4), "y": torch.arange(4), "eps": EPS, **change}
    with pytest.raises(InputError, match=message):
        save(tmp_path / "set", what.pop("x"), what.pop("x_adv"), what.pop("y"), **what)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_not_written_over_and_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    x, y = eight_bits(2), torch.arange(2)
    save(tmp_path / "set", x, x, y, eps=EPS)
    with pytest.raises(InputError, match="is there already"):
        save(tmp_path / "set", x, x, y, eps=EPS)
    save(tmp_path / "set.npz", x, x, y, eps=EPS)
    before = (tmp_path / "set.npz").read_bytes()

    def full_disk(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full_disk)
    monkeypatch.setattr(Image.Image, "save", full_disk)
    for form in ("set.npz", "other"):
        with pytest.raises(InputError, match="cannot be written: No space left"):
            save(tmp_path / form, x, x, y, eps=EPS)
    assert (tmp_path / "set.npz").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "set.npz"]


@pytest.fixture
def written(tmp_path):
    """One set in both forms, verified by a net."""
    net, x = conv_net(0), eight_bits(4)
    x_adv, y = adaptive(eps=EPS)(net, x), predictions(net, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for form in FORMS:
            save(tmp_path / form, x, x_adv, y, eps=EPS, model=net)
    return tmp_path


def rewrite(folder, change):
    """Change the JSON of a set of pictures."""
    content = json.loads((folder / "set.json").read_text())
    change(content)
    (folder / "set.json").write_text(json.dumps(content))


def repack(file, signed, **change):
    """Change arrays of a .npz set; `signed` puts a fitting fingerprint on it, as a forger would."""
    with np.load(file) as content:
        arrays = {name: content[name] for name in content.files}
    facts = {**json.loads(str(arrays.pop("facts"))), **change.pop("facts", {})}
    arrays = {k: v for k, v in {**arrays, **change}.items() if v is not None}
    facts.pop("fingerprint")
    tensors = {name: torch.tensor(values) for name, values in arrays.items()}
    mark = adversarial_sets.files.seal(facts, tensors) if signed else "0" * 64
    np.savez(file, facts=np.array(json.dumps({**facts, "fingerprint": mark})), **arrays)


@pytest.mark.parametrize("name", ["x", "x_adv"])
def test_one_pixel_by_one_level_is_noticed(name, written):
    file = written / "set" / name / "000002.png"
    pixels = np.array(Image.open(file))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(file)
    with pytest.raises(InputError, match="changed after it was written"):
        load(written / "set")


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["facts"].update(eps=0.5),
        lambda c: c["facts"].update(attack="another"),
        lambda c: c["columns"]["y"].reverse(),
        lambda c: c["columns"]["confidence"].reverse(),
        lambda c: c["facts"].pop("fingerprint"),
    ],
)
def test_a_changed_word_is_noticed(change, written):
    rewrite(written / "set", change)
    with pytest.raises(InputError, match="changed after it was written"):
        load(written / "set")


def test_a_changed_array_is_noticed(written):
    repack(written / "set.npz", signed=True)
    load(written / "set.npz", conv_net(0))  # nothing changed, and signed
    repack(written / "set.npz", signed=False, y=np.array([0, 1, 2, 0]))
    with pytest.raises(InputError, match="changed after it was written"):
        load(written / "set.npz")


BIG = np.full((4, 3, 8, 8), 0.5, dtype=np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_adv": BIG}, "must be the attack's budget"),
        ({"x_adv": np.full_like(BIG, np.nan)}, "NaN"),
        ({"x_adv": 2 * BIG + 1}, r"must lie in \[0, 1\]"),
        ({"x_adv": BIG[:3]}, "one shape"),
        ({"x_adv": BIG.astype(np.float64)}, "x_adv must be torch.float32"),
        ({"x": BIG[0], "x_adv": BIG[0]}, "shape"),
        ({"y": np.array([0, 1, 2, 5])}, r"y must lie in \[0, 4\]"),
        ({"y": np.array([0, 1, 2, -1])}, r"y must lie in \[0, 4\]"),
        ({"y": np.array([0.0, 1, 2, 3])}, "y must be torch.int64"),
        ({"answer": np.array([0, 1, 2, 9])}, "answer must lie"),
        ({"share": np.full(4, np.nan, dtype=np.float32)}, "share must lie"),
        ({"confidence": np.full(4, 2, dtype=np.float32)}, "confidence must lie"),
        ({"confidence": None}, "it must hold"),
        ({"more": np.zeros(4)}, "it must hold"),
        ({"facts": {"eps": float("nan")}}, "eps must be"),
        ({"facts": {"eps": "1"}}, "eps must be"),
        ({"facts": {"norm": "l7"}}, "norm must be one of"),
        ({"facts": {"norm": ["linf"]}}, "norm must be one of"),
        ({"facts": {"keep_labels": 1}}, "keep_labels"),
        ({"facts": {"classes": 1}}, "classes must be"),
        ({"facts": {"attack": "\ud800"}}, "not UTF-8"),
        ({"facts": {"classes": None}}, "it must hold"),
        ({"facts": {"format": "other"}}, "its format is 'other'"),
    ],
)
def test_a_forged_set_is_refused(change, message, written):
    repack(written / "set.npz", signed=True, **change)
    with pytest.raises(InputError, match=message):
        load(written / "set.npz")


class Trap:
    """What a pickle may do: run something when it is read."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was read",))


def test_no_pickle_is_read(written):
    np.savez(written / "set.npz", facts=np.array([Trap()], dtype=object))
    with pytest.raises(InputError, match="damaged"):
        load(written / "set.npz")


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.9])
def test_a_torn_file_is_refused(keep, written):
    for file in (
        written / "set.npz",
        written / "set" / "x_adv" / "000001.png",
        written / "set" / "set.json",
    ):
        content = file.read_bytes()
        file.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
        with pytest.raises(InputError, match=r"damaged|changed"):
            load(_set_of(file))
        file.write_bytes(content)


@pytest.mark.parametrize(
    ("local", "central", "value"),
    [(6, 8, b"\x01\x00"), (8, 10, b"\x63\x00")],  # places in the zip format's two headers
    ids=["encrypted", "of an unknown compression"],
)
def test_a_zip_member_that_cannot_be_unpacked_is_refused(local, central, value, written):
    content = bytearray((written / "set.npz").read_bytes())
    for mark, place in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        for found in re.finditer(re.escape(mark), bytes(content)):
            content[found.start() + place : found.start() + place + 2] = value
    (written / "set.npz").write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        load(written / "set.npz")


def test_json_that_is_nested_without_end_is_refused(written):
    (written / "set" / "set.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="damaged"):
        load(written / "set")


def _set_of(file):
    return file if file.suffix == ".npz" else file.parents[1] if file.suffix == ".png" else file.parent


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(shape=[4, 3, 8]),
        lambda c: c.update(shape=[0, 3, 8, 8]),
        lambda c: c.update(shape=[4, 4, 8, 8]),
        lambda c: c.update(shape=[4, 3, 8, 9]),
        lambda c: c.update(shape=[10**9, 3, 8, 8]),
        lambda c: c.update(facts=[]),
        lambda c: c["columns"].update(y=[0, 1, 2, 10**30]),
        lambda c: c["columns"].update(y=["0", 1, 2, 3]),
        lambda c: c["columns"].update(y=[]),
        lambda c: c["columns"].update(y=[0, 1, 2, 1.5]),
        lambda c: c["columns"].update(answer=[0, 1, 2, True]),
        lambda c: c["columns"].update(share=[1, 1, 1, True]),
        lambda c: c.update(shape=[4.5, 3, 8, 8]),
        lambda c: c["columns"].update(y=[[0], [1], [2], 3]),
    ],
)
def test_a_folder_that_cannot_be_is_refused(change, written):
    rewrite(written / "set", change)
    with pytest.raises(InputError, match="damaged"):
        load(written / "set")


def test_facts_that_are_said_twice_are_refused(written):
    file = written / "set" / "set.json"
    file.write_text(file.read_text().replace('"eps"', '"eps": 0.001, "eps"', 1))
    with pytest.raises(InputError, match="names something twice"):
        load(written / "set")


def test_an_array_that_unpacks_to_much_more_than_its_file_is_refused(written, monkeypatch):
    room = sys.modules["poise.data.npz"]  # the function of that name hides it
    monkeypatch.setattr(room, "UNPACKED", 100)
    monkeypatch.setattr(room, "RATIO", 0)
    with pytest.raises(InputError, match="would unpack to"):
        load(written / "set.npz")


def test_what_is_not_there_or_no_set_is_refused(written):
    (written / "set" / "x" / "000003.png").unlink()
    shutil.copy(written / "set" / "set.json", written / "file.npz")
    (written / "empty").mkdir()
    np.save(written / "bare.npy", np.zeros(3))
    for name in ("set", "file.npz", "empty", "nothing", "nothing.npz", "bare.npy"):
        with pytest.raises(InputError, match="no adversarial set"):
            load(written / name)
