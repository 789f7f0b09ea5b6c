"""A finished run's model as a file for other programs, judged by what it answers once it is read again."""

from __future__ import annotations

import copy
import json
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from poise import models, store
from poise.checks import InputError, require
from poise.labels import names_of
from poise.models.hugging_face import Logits
from poise.models.normalize import Classifier, Normalize
from poise.modes import LogitsAlone, ask
from poise.shapes import Images
from poise.training.outcome import load, read_finished

IMAGES = 4
NEAR = 1e-3  # by how much logits may differ, relative to the largest
PROPERTY = 14  # metadata_props of onnx.proto's ModelProto, pairs of a key (1) and a value (2)


def export(
    run: str | Path, out: str | Path, *, code: str | None = None, model: nn.Module | None = None
) -> float:
    """Write a run's model to `out`, and give by how much its logits differ once read again, at most.

    A .safetensors file has the network's own names for its tensors, without a prefix, as timm, torchvision
    or Hugging Face made it; the normalisation is in its metadata, "mean" and "std", beside "classes". An
    .onnx file takes images in [0, 1], the normalisation inside. Of an hf/ model any other name is a folder,
    as `save_pretrained` leaves it.

    Args:
        run: the folder of a finished training.
        out: where to; nothing may be there.
        code: as in `poise.load`.
        model: as in `poise.load`.

    Raises:
        InputError: no such run, `out` is there, a package is missing, or the file answers otherwise than
            the model: then nothing is left.
    """
    path, net = Path(out), load(run, code=code, model=model)
    shape = read_finished(run)[0]["job"]["shape"]
    x = torch.rand(IMAGES, *shape, generator=torch.Generator().manual_seed(0))
    write = {".safetensors": _safetensors, ".onnx": _onnx}.get(path.suffix, _folder)
    if path.exists():
        raise InputError(f"--out {str(path)!r} is there already: name another")
    with torch.no_grad(), store.replacement(path) as new:
        wanted, got = ask(net, x), write(net, new, x)
        off, most = float((wanted - got).abs().max()), float(wanted.abs().max())
        if not off <= NEAR * (1 + most):  # NaN neither
            raise InputError(
                f"the model as {path.name} gives logits that differ by {off:.2g}: it was not left; the "
                "other forms are .safetensors, .onnx and, of hf/ models, a folder"
            )
    return off


def bare(net: nn.Module) -> nn.Module:
    """The network that others know, without what poise put round it."""
    while isinstance(net, Classifier | Logits | LogitsAlone):
        inner = net.model if isinstance(net, LogitsAlone) else net.net
        assert isinstance(inner, nn.Module)
        net = inner
    return net


def _safetensors(net: nn.Module, file: Path, x: Images) -> Tensor:
    facts = {"format": "pt", "classes": json.dumps(names_of(net))}
    if isinstance(net, Classifier) and isinstance(net.normalize, Normalize):
        facts |= {
            name: json.dumps(values.flatten().tolist()) for name, values in net.normalize.named_buffers()
        }
    store.write_tensors(file, bare(net).state_dict(), facts)
    again = copy.deepcopy(net)
    for tensor in again.state_dict().values():
        tensor.fill_(math.nan if tensor.is_floating_point() else 0)
    bare(again).load_state_dict(store.read_tensors(file)[0])
    answers: Tensor = again(x)
    return answers


def _onnx(net: nn.Module, file: Path, x: Images) -> Tensor:
    require("onnx", extra="onnx", what="writing an ONNX file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own age, and of constants that it does not fold
        torch.onnx.export(
            net,
            (x,),
            str(file),
            dynamo=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "n"}, "logits": {0: "n"}},
        )
    if names := names_of(net):
        with file.open("ab") as stream:  # a message goes on where its bytes end
            stream.write(
                _field(PROPERTY, _field(1, b"class_names") + _field(2, json.dumps(names).encode()))
            )
    _, channels, height, width = x.shape
    answers: Tensor = models.load(f"onnx/{file}", classes=None, shape=(channels, height, width))(x)
    return answers


def _folder(net: nn.Module, folder: Path, x: Images) -> Tensor:
    inner: Any = bare(net)
    if not hasattr(inner, "save_pretrained"):
        raise InputError(
            f"--out {folder.name!r} must end in .safetensors or .onnx: folders are of hf/ models"
        )
    names = names_of(net)
    if names is not None:
        inner.config.id2label = dict(enumerate(names))
        inner.config.label2id = {name: number for number, name in enumerate(names)}
    inner.save_pretrained(folder)
    again = copy.deepcopy(net)
    bare(again).load_state_dict(type(inner).from_pretrained(folder).state_dict())
    answers: Tensor = again(x)
    return answers


def _field(number: int, content: bytes) -> bytes:
    r"""Bytes as a field of a protocol buffer, its number and length before them.

    >>> _field(1, b"ab")
    b'\n\x02ab'
    """
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low]) if not rest else bytes([low | 128]) + _varint(rest)
