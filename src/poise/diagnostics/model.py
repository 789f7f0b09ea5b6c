"""Diagnostics of a model: answers that are random, depend on what they should not, or are no logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from poise.attacks.common import wide
from poise.checks import check_images, check_logits, check_number, looks_like_probabilities
from poise.diagnostics.finding import LEAST, Finding, above_least, of_images
from poise.modes import ask, evaluating
from poise.shapes import Images, Logits, Mask, Model

REPEATED, REGROUPED = 1e-4, 1e-2  # of the logits' range: what repeating and another batch may change


def model_findings(model: Model, x: Images, *, least: float = LEAST) -> tuple[Finding, ...]:
    """Whether the model's answers are random, or depend on its mode or on the batch, or are no logits.

    Three to five forwards of at most all of x, in evaluation mode, and one in training mode where
    the model was left in it. The model's flags, buffers and the global random state are as before.

    >>> noisy = lambda x: 100 * torch.rand(len(x), 3)
    >>> [finding.kind for finding in model_findings(noisy, torch.zeros(4, 1, 2, 2))]
    ['randomised']
    """
    check_images(x)
    check_number("least", least, 0, 1, hint="it is a share of images")
    if len(x) == 0:
        return ()
    with _undoing(model, x):
        with evaluating(model):
            logits = _logits(model, x)
            likely = logits.ndim == 2 and looks_like_probabilities(logits, tolerance=1e-3)
            check_logits(logits.clamp_min(1e-30).log() if likely else logits, len(x))
            random = _differ(logits, _logits(model, x), REPEATED)
            pairs = [_logits(model, part) for part in (x[:2], x[2:4])] if len(x) >= 4 else [logits]
            grouped = _differ(logits[:4], torch.cat(pairs)[:4], REGROUPED)
        training = isinstance(model, nn.Module) and any(m.training for m in model.modules())
        training &= len(x) > 1  # BatchNorm cannot train on one image
        other = _differ(logits, _logits(model, x), REGROUPED) if training else torch.zeros_like(random)
    found = [
        of_images(
            "randomised",
            "",
            random,
            "of the images get other logits when they are shown again in evaluation mode",
            "Take the randomness out (e.g. a functional dropout without its training flag), or "
            "average the logits over fixed draws: single attacked confidences mean little.",
        ),
        of_images(
            "training-mode",
            "",
            other & ~random.any(),
            "of the images get other logits in the mode that the model was left in than in evaluation mode",
            "Call model.eval() before using it: the audit speaks of evaluation mode only.",
        ),
        of_images(
            "batch-dependent",
            "",
            grouped & ~random.any(),
            "of the images get other logits in another batch",
            "Give BatchNorm its running statistics: confidences here depend on an image's neighbours.",
        ),
    ]
    if likely:
        found.append(
            of_images(
                "probabilities",
                "",
                torch.ones_like(random),
                "of the model's rows are in [0, 1] and sum to 1, so it returns probabilities, not logits",
                "Take its softmax away, or wrap it: lambda x: model(x).clamp_min(1e-30).log(); attacks "
                "through two softmaxes are weak.",
            )
        )
    return above_least(found, least)


@contextmanager
def _undoing(model: Model, x: Images) -> Iterator[None]:
    """No gradients; buffers and the global random state are given back."""
    buffers = list(model.buffers()) if isinstance(model, nn.Module) else []
    values = [buffer.clone() for buffer in buffers]
    devices = [x.device] if x.is_cuda else []
    with torch.random.fork_rng(devices), torch.no_grad():
        try:
            yield
        finally:
            for buffer, value in zip(buffers, values, strict=True):
                buffer.copy_(value)


def _logits(model: Model, x: Images) -> Logits:
    out = ask(model, x)
    if isinstance(out, np.ndarray):
        return torch.as_tensor(out)
    if not isinstance(out, torch.Tensor):
        check_logits(out, len(x))  # refuses it, with a message
    return wide(out)


def _differ(first: Logits, second: Logits, tolerance: float) -> Mask:
    """Whether rows differ by more than a share of the first's range."""
    spread = (first.amax(dim=1) - first.amin(dim=1)).clamp_min(1e-6)
    return (first - second).abs().amax(dim=1) > tolerance * spread
