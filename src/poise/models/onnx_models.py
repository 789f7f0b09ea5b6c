"""Networks in ONNX files: black boxes, which tell their logits and no gradient."""

import ast
import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from poise.checks import TELLING, InputError, looks_like_probabilities, require
from poise.models.normalize import Normalize
from poise.modes import call_model

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}

REFUSALS = (  # onnxruntime's exceptions, which share no class of their own
    *("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel", "NotImplemented"),
    *("NoSuchFile", "RuntimeException"),
)


class OnnxModel(nn.Module):
    """Logits by onnxruntime, on the device and in the precision of the images; no gradient.

    Args:
        file: the ONNX file, of one input (n, channels, height, width).
        session: onnxruntime's.
    """

    def __init__(self, file: str, session: Any) -> None:
        super().__init__()
        self.file, self.session = file, session
        self.digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        self.normalize, self.class_names = _normalisation(session), _names(session)
        (given,) = session.get_inputs()
        self.name, self.kind = given.name, TYPES[given.type]
        self.shape = tuple(given.shape)
        self.output = _logits_output(file, session.get_outputs())
        self.probabilities = False  # whether the file ends in a softmax, which is then undone

    def forward(self, x: Tensor) -> Tensor:
        """The logits of any number of images, by parts where the file has a fixed batch size."""
        if x.requires_grad and torch.is_grad_enabled():
            raise InputError(
                f"onnx/{self.file} is a black box and has no gradients: name attacks that need none "
                "(square, ...), or load the network itself"
            )
        pixels = self.normalize(x.detach().to("cpu", torch.float32)).numpy().astype(self.kind)
        whole, size = len(pixels), self.shape[0]
        if isinstance(size, int):  # fill the last part up with the first image
            short = np.repeat(pixels[:1], -whole % size, axis=0)
            parts = np.split(np.concatenate([pixels, short]), -(-whole // size)) if whole else []
        else:
            parts = [pixels]
        logits = [self.session.run([self.output.name], {self.name: part})[0] for part in parts]
        out = np.concatenate(logits)[:whole] if logits else np.zeros((0, self.classes or 0), self.kind)
        answers = torch.from_numpy(np.ascontiguousarray(out)).to(x.device, x.dtype)
        return answers.clamp_min(1e-30).log() if self.probabilities else answers

    @property
    def classes(self) -> int | None:
        """How many logits, where the file says so."""
        shape = self.output.shape
        return shape[1] if len(shape) == 2 and isinstance(shape[1], int) else None


def onnx(
    name: str,
    *,
    classes: int | None = 1000,
    shape: tuple[int, int, int] = (3, 224, 224),
    pretrained: bool = True,
    new_head: bool = False,
) -> OnnxModel:
    """onnx/FILE: the network in an ONNX file, for black-box attacks alone; needs the extra onnx.

    It gets the pixels in [0, 1], normalised where the file's metadata has "mean" and "std", each a
    JSON list of one number a channel; "class_names" there is a JSON list of what the logits stand for.
    Its output is the logits, or probabilities, whose logarithms are taken then.

    Args:
        name: path of the file.
        classes: how many logits; None is as many as the file has.
        shape: (channels, height, width) of the images.
        pretrained: the file holds its weights; anything else is refused.
        new_head: refused too.
    """
    del new_head  # there is nothing that could train
    runtime = require("onnxruntime", extra="onnx", what=f"onnx/{name}")
    if not pretrained:
        raise InputError(f"onnx/{name} holds its weights, others cannot be put in: leave --weights away")
    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError(f"no ONNX file at {name!r}")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    available = runtime.get_available_providers()
    providers = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in available]
    refusals = tuple(getattr(runtime.capi.onnxruntime_pybind11_state, kind) for kind in REFUSALS)
    try:
        session = runtime.InferenceSession(path, options, providers=providers)
    except (*refusals, OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{name!r} is no ONNX file that onnxruntime reads: {error}") from error
    _check_input(name, session.get_inputs(), shape)
    model = OnnxModel(str(path), session).eval()
    if classes is not None and model.classes not in (None, classes):
        raise InputError(f"onnx/{name} has {model.classes} classes, not {classes}")
    try:
        _undo_softmax(name, model, shape)
    except refusals as error:
        raise InputError(f"onnx/{name} fails on images of shape {shape}: {error}") from error
    return model


def _undo_softmax(name: str, model: OnnxModel, shape: tuple[int, int, int]) -> None:
    """Have the logarithms of a file's probabilities as its logits, whose softmax they are; and say so."""
    tries = torch.stack([torch.full(shape, grey / 7) for grey in range(8)])
    tries[4:] = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    logits = call_model(model, tries)
    if logits.ndim == 2 and looks_like_probabilities(logits, tolerance=1e-2) and logits.numel() >= TELLING:
        model.probabilities = True
        warnings.warn(
            f"onnx/{name} ends in a softmax: the logarithms of its probabilities are taken as logits, "
            "which gives the same confidences",
            stacklevel=2,
        )


def _logits_output(file: str, outputs: list[Any]) -> Any:
    """The output that holds the logits: the one of that name, or the only one that can be it."""
    matrices = [out for out in outputs if out.type in TYPES and len(out.shape) in (0, 2)]
    named = [out for out in matrices if out.name == "logits"]
    if len(named or matrices) != 1:
        found = ", ".join(f"{out.name} {out.type} {tuple(out.shape)}" for out in outputs)
        raise InputError(
            f"onnx/{file} has no single output of logits (n, classes), but {found}: export the network so "
            "that it returns its logits alone, or names them logits"
        )
    return (named or matrices)[0]


def _check_input(name: str, inputs: list[Any], shape: tuple[int, int, int]) -> None:
    """Refuse a file with another input than such images."""
    if len(inputs) != 1:
        raise InputError(f"onnx/{name} takes {len(inputs)} inputs, one is needed: the images")
    takes = tuple(inputs[0].shape)
    fits = len(takes) == 4 and all(
        not isinstance(t, int) or t == s for t, s in zip(takes[1:], shape, strict=True)
    )
    if not fits:
        raise InputError(f"onnx/{name} takes an input of shape {takes}, the images are {shape}")
    if inputs[0].type not in TYPES:
        raise InputError(f"onnx/{name} takes {inputs[0].type}, images are floating point in [0, 1]")


def _normalisation(session: Any) -> nn.Module:
    """What the file's metadata ask for: its mean and standard deviation, or nothing."""
    about = session.get_modelmeta().custom_metadata_map
    if "mean" not in about and "std" not in about:
        return nn.Identity()
    try:
        return Normalize(*([float(v) for v in json.loads(about[key])] for key in ("mean", "std")))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"the metadata mean and std must both be JSON lists of numbers: {error}"
        ) from error


def _names(session: Any) -> tuple[str, ...] | None:
    """What the logits stand for, by the metadata: a list `class_names`, or Ultralytics' `names`."""
    about = session.get_modelmeta().custom_metadata_map
    told = about.get("class_names") or about.get("names")
    if told is None:
        return None
    try:
        names = ast.literal_eval(told)
        names = [names[place] for place in range(len(names))]
        if all(isinstance(name, str) for name in names) and names:
            return tuple(names)
    except (KeyError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
        pass
    raise InputError(f"the metadata class_names must be a JSON list of names, got {told[:80]!r}")
