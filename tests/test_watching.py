"""Numbers in others' loops: as torchmetrics, as a function, as a callback."""

import copy
import sys
import types

import pytest
import torch
from torch import nn

import poise
from nets import conv_net, images, predictions
from poise import InputError, attacks, metrics
from poise.metrics.running import AttackedConfidence, CalibrationError, LabelKept
from poise.watching import lightning_callback, under_attack


def probabilities(n, seed):
    return (3 * torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))).softmax(dim=1)


def test_batch_by_batch_is_the_same_as_at_once():
    clean, attacked, y = probabilities(50, 0), probabilities(50, 1), torch.arange(50) % 4
    error, kept, held = CalibrationError(), LabelKept(), AttackedConfidence()
    for part in (slice(0, 7), slice(7, 7), slice(7, 50)):
        error.update(attacked[part], y[part])
        kept.update(clean[part], attacked[part])
        held.update(clean[part], attacked[part])
    same = clean.argmax(1) == attacked.argmax(1)
    assert float(error.compute()) == pytest.approx(metrics.ece(attacked, y), abs=1e-12)
    assert float(kept.compute()) == pytest.approx(metrics.label_kept(clean, attacked), abs=1e-12)
    assert float(held.compute()) == pytest.approx(metrics.confidence(attacked[same]), abs=1e-6)


def test_two_processes_add_up():
    clean, attacked, y = probabilities(30, 2), probabilities(30, 3), torch.arange(30) % 4
    parts = [CalibrationError(), CalibrationError()]
    for metric, part in zip(parts, (slice(0, 11), slice(11, 30)), strict=True):
        metric.update(attacked[part], y[part])
    one, other = parts
    for name, reduce in one._reductions.items():
        setattr(one, name, reduce(torch.stack([getattr(one, name), getattr(other, name)])))
    one._computed = None
    assert float(one.compute()) == pytest.approx(metrics.ece(attacked, y), abs=1e-12)
    with pytest.raises(InputError, match="rows in"):
        one.update(clean * 2, y)


def batches():
    x = images(24)
    y = predictions(conv_net(), x)
    y[::4] = (y[::4] + 1) % 5
    return [(x[:10], y[:10], "more"), (x[10:], y[10:], "more")]


def test_a_training_is_looked_at_and_goes_on_as_if_it_were_not():
    net = copy.deepcopy(conv_net()).train()
    net[1].eval()
    state = torch.get_rng_state(), [m.training for m in net.modules()], copy.deepcopy(net.state_dict())
    found = under_attack(net, batches(), attacks.confsmooth(eps=0.05, steps=3), images=15)
    assert torch.equal(torch.get_rng_state(), state[0]) and [m.training for m in net.modules()] == state[1]
    assert all(torch.equal(value, state[2][name]) for name, value in net.state_dict().items())
    x, y, _ = (
        torch.cat(parts)[:15] if n < 2 else None for n, parts in enumerate(zip(*batches(), strict=True))
    )
    records = poise.evaluate(net, [(x, y)], attacks.confsmooth(eps=0.05, steps=3))
    assert found["attacked/confidence"] == metrics.confidence(records.attacked) < found["clean/confidence"]
    assert found["clean/accuracy"] == metrics.accuracy(records.clean, y) and found["label_kept"] == 1


def test_the_callback_logs_what_the_function_says(monkeypatch):
    with pytest.raises(InputError, match=r"pip install 'poise\[lightning\]'"):
        lightning_callback(batches())
    lightning = types.ModuleType("lightning")
    lightning.Callback = type("Callback", (), {})
    monkeypatch.setitem(sys.modules, "lightning", lightning)
    told = []

    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = conv_net()

        def forward(self, x):
            return self.net(x)

        def log_dict(self, values, rank_zero_only):
            told.append(values)

    callback, module = lightning_callback(batches(), every=2, images=8), Module()
    assert isinstance(callback, lightning.Callback)
    for epoch in range(4):
        trainer = types.SimpleNamespace(is_global_zero=True, current_epoch=epoch)
        callback.on_train_epoch_end(trainer, module)
    expected = {f"under_attack/{name}": v for name, v in under_attack(module, batches(), images=8).items()}
    assert told == [expected, expected]
