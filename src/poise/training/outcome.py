"""What comes of the steps: a row an epoch, the weights that count, the finished run."""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn

from poise import models, store
from poise.checks import InputError
from poise.data import ImageSet
from poise.modes import ask, evaluating
from poise.preparation import Preparation
from poise.recalibration import logits_of, temperature
from poise.training import checkpoint, selection
from poise.training.budget import budget
from poise.training.distributed import InPrecision
from poise.training.run import Run
from poise.training.schedule import learning_rate
from poise.training.weights import finite

EPS = 0.03  # the budget to look at where the defense has none: the paper's in evaluation


def close_epoch(run: Run, show: Callable[[Mapping[str, Any]], None]) -> None:
    """Add the epoch's row, keep its weights if they are the best, write metrics and checkpoint.

    Raises:
        InputError: the loss or a weight is no longer finite, or the disk is full.
    """
    loss = float(torch.stack(run.losses).mean())
    if not finite(run.net, loss):
        raise InputError(_diverged(run))
    row = {
        "epoch": len(run.rows) + 1,
        "loss": loss,
        "seconds": run.seconds,
        "lr": learning_rate(run.job, run.step - 1, run.steps),
        "images_per_second": len(run.train) / max(run.seconds, 1e-9),
    }
    run.rows.append(row | _judged(run))
    if run.job.select != "last" and _is_best(run.rows):
        run.best = {name: t.detach().cpu().clone() for name, t in run.judged.state_dict().items()}
    with store.writing(run.folder):
        store.write_frame(run.folder / "metrics.parquet", pl.DataFrame(run.rows, infer_schema_length=None))
        show(run.rows[-1])
    run.losses, run.seconds = [], 0.0
    checkpoint.save(run)


def finish(run: Run) -> nn.Module:
    """The trained model in evaluation mode, left in the run folder too; the checkpoints go."""
    best = run.fabric.broadcast(run.best)
    run.net.load_state_dict(best or run.judged.state_dict())
    run.net.requires_grad_(True).eval()
    if run.fabric.is_global_zero:
        facts: dict[str, Any] = {}
        if best:
            facts["selected_epoch"] = 1 + selection.best_epoch([row["score"] for row in run.rows])
        if len(run.validation):
            facts["k_nll"] = _scale(run)
        seconds = sum(row["seconds"] for row in run.rows)
        facts |= {"source": run.data.told, "seconds": seconds, "collapsed": _collapsed(run.net, run.data)}
        names = {"classes": json.dumps(run.data.classes)}
        files = {
            "seen.safetensors": store.tensor_bytes({"images": _seen(run)}),
            "model.safetensors": store.tensor_bytes(run.net.state_dict(), names),
        }
        store.leave(run.folder, files, **facts)
        checkpoint.remove(run.folder)
    run.fabric.barrier()
    return run.net


def load(run: str | Path, *, code: str | None = None) -> nn.Module:
    """The trained model of a run folder, in evaluation mode, on the CPU.

    Args:
        run: the folder.
        code: the model's name once more, where it stands for code or for a download (FILE.py:FUNCTION,
            hf/NAME, ...): a folder that came from elsewhere starts neither by itself.

    Raises:
        InputError: no such run, one that has not finished, or one whose model must be named.
    """
    content, weights = finished(run)
    job = content["job"]
    name = model_of(run, job, () if code is None else (code,))
    if code not in (None, name):
        raise InputError(f"the model in {str(run)!r} is {name!r} and not {code!r}: leave code away")
    channels, height, width = job["shape"]
    net = models.load(
        name,
        classes=len(job["classes"]),
        shape=(channels, height, width),
        weights=weights,
    )
    vars(net).update(preparation=preparation_in(content), size=(height, width))
    return models.with_names(net, job["classes"])


def preparation_in(content: Mapping[str, Any]) -> Preparation | None:
    """How a run's images were brought to their shape, by its job.json; None if they came as they are.

    Raises:
        InputError: job.json was changed to something that is no preparation.
    """
    told = dict(content.get("source", {}).get("read", {}))
    height, width = content["job"]["shape"][1:]
    if "channels" not in told:  # of images in files alone
        return None
    try:
        own = Preparation(**told).pixels
    except TypeError as error:
        raise InputError(
            f"the run's job.json is damaged: source.read is no preparation ({error})"
        ) from error
    return own if own.size or own.crop or height != width else replace(own, size=height)


def seen_by(weights: Path) -> Tensor | None:
    """Marks of the images that a run's weights were trained on, beside them; None where there are none."""
    file = weights.parent / "seen.safetensors"
    return store.read_tensors(file)[0]["images"] if file.is_file() else None


def finished(run: str | Path) -> tuple[dict[str, Any], Path]:
    """What job.json says of a finished training, and the file of its weights; no net is made.

    Raises:
        InputError: no such run, one that has not finished, or one that no training has left so.
    """
    folder = Path(run).expanduser()
    content = store.read_job(folder)
    job = content["job"]
    kind = job.get("kind")
    if kind != "train":
        raise InputError(f"{str(folder)!r} is no training run: its kind is {kind!r}")
    if not (folder / "model.safetensors").exists():
        raise InputError(
            f"the training in {str(folder)!r} has not finished: the same `poise train` command resumes it"
        )
    return content, store.whole(folder, "model.safetensors", content)


def model_of(run: str | Path, job: Mapping[str, Any], named: Sequence[str] = ()) -> str:
    """The name to build a run's model by: its own, or the one of `named` that is the same elsewhere.

    Raises:
        InputError: the model stands for code or for a download, and the user has not named it.
    """
    name: str = job["model"]
    again = [other for other in named if _parts(other) == _parts(name)]
    if not again and not models.stands_alone(name):
        does = "runs code" if models.is_code(name) else "may be downloaded"
        raise InputError(
            f"the model in {str(run)!r} is {name!r}, which {does}: if you trust it, name it again, "
            f"--code {shlex.quote(name)} (in Python: code={name!r})"
        )
    chosen = again[0] if again else name
    if "code" in job and models.code_digest(chosen) != job["code"]:
        warnings.warn(f"the code of {chosen} has changed since the training of {str(run)!r}", stacklevel=3)
    return chosen


def _parts(name: str) -> tuple[str, str]:
    """What stays of a model's name when its files lie elsewhere: its kind, and the last of the path."""
    return "code" if models.is_code(name) else name.partition("/")[0], name.rpartition("/")[2]


def _seen(run: Run) -> Tensor:
    """Marks of the run's images, those set aside too, and of those that its first weights have seen."""
    before = None if run.job.weights in (None, "pretrained") else seen_by(Path(str(run.job.weights)))
    marks = run.data.marks()
    return marks if before is None else torch.cat([before, marks])


def _judged(run: Run) -> dict[str, Any]:
    """Accuracy, accuracy under PGD, confidence under ConfSmooth; of which images; the score, if any.

    Of a frozen backbone accuracy alone: its epochs are forwards, and attacks would cost more than they.
    """
    job, net = run.job, run.judged
    which = ["accuracy"] if job.freeze == "backbone" else ["accuracy", "pgd", "confidence"]
    which += [job.select] if job.select == "confsmooth" else []
    model = net if job.precision == "32-true" else InPrecision(net, run.fabric)
    own = budget(run.defense, linf=True)
    eps = EPS if own is None else own
    few = selection.watched(run.train, run.validation)
    found = selection.measure(model, run.data, few, eps, which)
    row: dict[str, Any] = {
        "watched": "validation" if len(run.validation) else "train",
        "accuracy": found["accuracy"],
        "pgd_accuracy": found.get("pgd"),
        "confidence": found.get("confidence"),
    }
    if job.select == "last":
        return row
    if job.select not in found or len(few) < len(run.validation):
        found = selection.measure(model, run.data, run.validation, eps, (job.select,))
    return row | {"score": found[job.select]}


def _scale(run: Run) -> float | None:
    """The factor on the logits of least validation NLL; None where there is no finite one."""
    try:
        return float(temperature(*logits_of(run.net, run.data.batches(run.validation))).k)
    except InputError:
        return None


def _is_best(rows: list[dict[str, Any]]) -> bool:
    return selection.best_epoch([row["score"] for row in rows]) == len(rows) - 1


def _collapsed(net: nn.Module, data: ImageSet) -> bool:
    """Whether the net answers one class for everything, which looks perfectly robust; warns if so."""
    device, answers = next(net.parameters()).device, set[int]()
    with evaluating(net), torch.no_grad():
        for x, _ in data:
            answers |= set(ask(net, x.to(device)).argmax(dim=1).tolist())
            if len(answers) > 1:  # seen enough
                break
    if collapsed := len(answers) == 1 < len(data.classes):
        warnings.warn(
            "the trained model gives every image the same class: it has collapsed, and its robustness "
            "means nothing; try a lower learning rate, a smaller eps, or eps_warmup",
            stacklevel=4,
        )
    return collapsed


def _diverged(run: Run) -> str:
    precise = "" if run.job.precision == "32-true" else ", precision 32-true"
    return (
        f"the training diverged in epoch {len(run.rows) + 1}, weights or loss are no longer finite: try "
        f"a lower learning rate than {run.job.lr:g}, warmup{precise}, in another folder than "
        f"{str(run.folder)!r}"
    )
