"""Damaged, odd and hostile files, made from a seed: images, folders, arrays, weights, runs, checkpoints.

`python fuzz_files.py PART PARTS FROM` runs every PARTS-th case from FROM on and prints a line of JSON
before and after each. A case ends in one line of an InputError, or in the right result: that of the
undamaged file, or what the format's own reader gives after it has verified the file, or a warning.
"""

import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback
import unicodedata
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import polars as pl
import torch
from PIL import Image
from safetensors.torch import load as read_safetensors
from safetensors.torch import save as safetensors_of
from torch import nn

import poise
from poise import adversarial_sets, attacks, data, defenses, models, report, store, training
from poise.preparation import Preparation
from poise.report import overview
from trainings import Stop, bits, digits, job

SECONDS, BYTES = 20, 1.5e9
FORMATS = ["PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM"]


class Fault(Exception):
    """A wrong answer that nobody was told of."""


class Slow(BaseException):
    """Longer than a case may take."""


# bytes


def damaged(rng, content):
    """The bytes with a few bits turned, cut, a header byte edited, or a part missing, zero or twice."""
    way = rng.choice(["flip", "flip", "cut", "head", "zero", "drop", "twice", "tail"])
    content, n = bytearray(content), len(content)
    at = rng.randrange(n)
    if way == "flip":
        for _ in range(rng.choice([1, 1, 3, 20])):
            content[rng.randrange(n)] ^= 1 << rng.randrange(8)
    elif way == "cut":
        del content[at:]
    elif way == "head":
        content[rng.randrange(min(n, 64))] = rng.choice([0, 1, 127, 255])
    elif way == "zero":
        content[at : at + 40] = bytes(len(content[at : at + 40]))
    elif way == "drop":
        del content[at : at + rng.choice([1, 8, 40])]
    elif way == "twice":
        content[at:at] = content[at : at + 40]
    else:
        content += rng.randbytes(rng.choice([1, 100]))
    return bytes(content)


def text_damaged(rng, content):
    """JSON, edited as a person or a program would: a value of another kind, gone, deep, NaN."""
    odd = [
        None,
        True,
        -1,
        1e400,
        float("nan"),
        "",
        "x" * 5000,
        [],
        {},
        [[]],
        "</script>",
        "$\\frac{$",
        10**400,
    ]
    places = []

    def walk(value):
        for key in value if isinstance(value, dict) else range(len(value)):
            places.append((value, key))
            if isinstance(value[key], dict | list):
                walk(value[key])

    walk(content)
    for _ in range(rng.choice([1, 1, 3])):
        owner, key = rng.choice(places)
        try:
            if rng.random() < 0.2:
                del owner[key]
            else:
                owner[key] = rng.choice(odd)
        except (KeyError, IndexError):
            continue
    text = json.dumps(content)
    return "[" * 20_000 + text if rng.random() < 0.05 else text


def json_file(rng, file):
    """An edited JSON file, by its values or its bytes."""
    if rng.random() < 0.7:
        file.write_text(text_damaged(rng, json.loads(file.read_text())))
    else:
        file.write_bytes(damaged(rng, file.read_bytes()))


# images


def picture(rng, mode="RGB", size=(12, 10)):
    bands = {"L": 1, "RGB": 3, "RGBA": 4, "P": 1, "1": 1}[mode]
    pixels = np.frombuffer(rng.randbytes(size[0] * size[1] * bands), np.uint8).reshape(size[1], size[0], -1)
    base = Image.fromarray(pixels[..., 0] if bands == 1 else pixels, None)
    return base.convert(mode) if mode in ("P", "1") else base


def encoded(rng):
    """A format, an ending and a good file."""
    kind = rng.choice([*FORMATS, "PNG", "TIFF", "GIF"])
    mode = rng.choice(["L", "RGB"] + (["RGBA", "P", "1"] if kind == "PNG" else []))
    options = {"compression": rng.choice(["raw", "tiff_lzw"])} if kind == "TIFF" else {}
    options |= {"lossless": True} if kind == "WEBP" else {}
    stream = io.BytesIO()
    picture(rng, mode).save(stream, kind, **options)
    return kind, {"JPEG": ".jpg", "TIFF": ".tif"}.get(kind, f".{kind.lower()}"), stream.getvalue()


def chunk(name, content):
    body = name + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png(width, height, depth=8, colour=0, rows=b""):
    """A PNG that says this of itself, its checksums right."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def odd_image(rng):
    """A file that is well formed and not what it seems: ending, content."""
    stream, pages = io.BytesIO(), [picture(rng) for _ in range(3)]
    which = rng.randrange(12)
    if which == 0:  # 12 bits in 16
        Image.fromarray((np.arange(120).reshape(10, 12) * 34).astype(np.uint16)).save(stream, "PNG")
        return ".png", stream.getvalue()
    if which == 1:  # several pages
        pages[0].save(stream, "TIFF", save_all=True, append_images=pages[1:])
        return ".tif", stream.getvalue()
    if which == 2:  # 8 bits in 32
        Image.fromarray(np.arange(120, dtype=np.int32).reshape(10, 12)).save(stream, "TIFF")
        return ".tif", stream.getvalue()
    if which == 3:
        Image.fromarray(np.linspace(0, 1, 120, dtype=np.float32).reshape(10, 12)).save(stream, "TIFF")
        return ".tif", stream.getvalue()
    if which == 4:
        return ".png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 10\n%%EndComments\nshowpage\n"
    if which == 5:
        return ".png", png(1, 60_000, rows=bytes(2 * 60_000))
    if which == 6:
        return ".png", png(60_000, 1, rows=bytes(60_001))
    if which == 7:
        return ".png", png(*rng.choice([(30_000, 30_000), (9_400, 9_400), (0, 10), (2**31 - 1, 2)]))
    if which == 8:  # an animation
        pages[0].save(stream, "PNG", save_all=True, append_images=pages[1:])
        return ".png", stream.getvalue()
    if which == 9:
        return rng.choice([".png", ".jpg"]), rng.choice(
            [b"", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\0" * 99]
        )
    if which == 10:  # text that unpacks to much
        text = b"zTXt" + b"a\0\0" + zlib.compress(bytes(200_000_000), 9)
        good = png(12, 10, rows=bytes(130))
        return ".png", good[:33] + chunk(text[:4], text[4:]) + good[33:]
    pages[0].save(stream, "TIFF")
    return ".tif", stream.getvalue().replace(struct.pack("<H", 256), struct.pack("<H", 257), 1)


def as_seen(content):
    """The pixels (c, h, w) as Pillow gives them after it has verified the file, or None if it refuses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(io.BytesIO(content), formats=FORMATS).verify()
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            image.load()
    except (
        OSError,
        SyntaxError,
        ValueError,
        TypeError,
        struct.error,
        zlib.error,
        EOFError,
        AttributeError,
        LookupError,
        RuntimeError,
        MemoryError,
        Image.DecompressionBombError,
    ):
        return None, None
    if image.mode not in ("L", "RGB", "P", "1", "RGBA", "LA", "CMYK"):
        return image, None
    if image.has_transparency_data:
        image_rgba = image.convert("RGBA")
        return image, np.array(
            Image.alpha_composite(Image.new("RGBA", image.size, "white"), image_rgba).convert("RGB")
        )
    return image, np.array(image.convert("RGB"))


def images(rng, here):
    odd = rng.random() < 0.25
    _, ending, content = (None, *odd_image(rng)) if odd else encoded(rng)
    content = content if odd else damaged(rng, content)
    size = rng.choice([None, None, 224]) if odd else None
    for label in "ab":
        (here / label).mkdir()
        picture(rng).save(here / label / "good.png")
    if size is None:
        shutil.rmtree(here / "b")  # so that the odd one is alone in its class, whatever its size
        (here / "b").mkdir()
    (here / "b" / f"odd{ending}").write_bytes(content)
    # three channels for all, so that each is as Pillow's RGB
    by = Preparation(channels="rgb", **({} if size is None else {"size": size}))
    loaded, told = watched(lambda: data.load(f"folder:{here}", preparation=by))
    (x, _), more = watched(lambda: next(iter(loaded)))
    told += more
    image, expected = as_seen(content)
    if told:
        return
    if image is None:
        raise Fault("an image was accepted that Pillow refuses when it verifies")
    if getattr(image, "n_frames", 1) > 1:
        raise Fault(f"one of {image.n_frames} pages was taken")
    if size is None:
        got = (255 * x[-1]).round().byte().permute(1, 2, 0).numpy()
        if expected is None:
            values = np.asarray(image).astype(float)
            if values.max() > 255 and values.max() < 32_768:
                raise Fault(
                    f"{image.mode} with a brightest value of {values.max():.0f} of 65,535, and no word"
                )
            if values.max() <= 255 and values.max() > 0 and got.max() < 32:
                raise Fault(f"{image.mode} up to {values.max():.0f} became nearly black")
        elif got.shape != expected.shape or not np.array_equal(got, expected):
            raise Fault(f"other pixels than Pillow's ({image.format} {image.mode})")


# folders

ENDINGS = (".png", ".PNG", ".jpg", ".bmp", ".gif", ".txt", ".heic", ".npy", "", ".png.part")


def folders(rng, here):
    top = here / "set"
    odd = ["train", "Cat", "cafe\u0301", "a" * 255, "$\\frac{$", "[red]", "x\ny", ".hidden"]
    kinds = ["cat", "dog", *rng.sample(odd, rng.randrange(2))]
    serial = 0
    for kind in kinds:
        (top / kind).mkdir(parents=True, exist_ok=True)
        for _ in range(2 * (kind != ".hidden")):
            Image.new("RGB", (6, 6), (40 + serial, 0, 0)).save(top / kind / f"{serial}.png")
            serial += 1
    for _ in range(rng.choice([1, 1, 2, 3])):
        serial += change(rng, top, serial)
    loaded, told = watched(lambda: data.load(f"folder:{top}"))
    batches, more = watched(lambda: list(loaded))
    told += more
    found = sorted(int(v) - 40 for x, _ in batches for v in (255 * x[:, 0, 0, 0]).round())
    if len(set(found)) < len(found):
        raise Fault(f"images were counted more than once: {found}")
    if sorted(set(found)) != list(range(serial)) and not told:
        raise Fault(f"of {serial} images {len(found)} were read, and no word")
    if len(set(loaded.classes)) < len(loaded.classes):
        raise Fault("two classes have one name")


def change(rng, top, serial):
    """One odd thing in a folder of images; how many images it adds that a person would count."""
    kind = top / rng.choice(["cat", "dog"])
    name = kind / f"odd{rng.randrange(10**6)}"
    way = rng.randrange(14)
    if way < 3:
        target = [Path(), Path(".."), top / "dog"][way]
        name.symlink_to(target)
    elif way == 3:
        name.with_suffix(".png").symlink_to(top / "nothing")
    elif way == 4:
        os.mkfifo(name.with_suffix(".png"))
    elif way == 5:
        name.with_suffix(".png").mkdir()
    elif way == 6:
        (top / "owl").mkdir(exist_ok=True)
    elif way == 7:
        name.with_suffix(".png").write_bytes(b"")
    elif way == 8:
        with socket.socket(socket.AF_UNIX) as held:
            os.chdir(kind)
            held.bind(f"{name.name}.png")
            os.chdir("/")
    elif way == 9:
        (kind / ".hidden.png").write_bytes(b"no image")
    elif way == 10:
        (kind / "Thumbs.db").write_bytes(b"no image")
    elif way == 11:
        (kind / "notes.txt").write_text("no image")
    elif way == 12:
        inner = kind / unicodedata.normalize("NFD", "é") / "deeper"
        inner.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 6), (40 + serial, 0, 0)).save(inner / f"{serial}.png")
        return 1
    else:
        ending = rng.choice(ENDINGS)
        stream = io.BytesIO()
        Image.new("RGB", (6, 6), (40 + serial, 0, 0)).save(stream, "PNG")
        raw = (
            os.fsencode(kind)
            + b"/"
            + rng.choice([b"odd", b"\xff\xfe", b"a b'c", b"-x"])
            + str(serial).encode()
        )
        Path(os.fsdecode(raw + ending.encode())).write_bytes(stream.getvalue())
        return int(ending in (".png", ".PNG", ".jpg", ".bmp", ".gif"))
    return 0


# arrays


def npz_edit(rng, arrays):
    """The arrays with one thing about them that is odd."""
    x, y = arrays["test_images"], arrays["test_labels"]
    n = len(x)
    images_ = [
        x.astype(np.float32),
        x / 255,
        x.astype(np.uint16),
        x.astype(">u2") * 257,
        x.astype(np.int64),
        x > 9,
        x.astype(np.complex64),
        x.astype(object),
        x.reshape(n, -1),
        x[:, None, None],
        np.stack([x] * 4, -1),
        np.stack([x] * 2, -1),
        np.stack([x] * 5, -1),
        x[:, :0],
        x[:0],
        x[:-1],
        x.astype("S3"),
        np.asfortranarray(x),
        x[..., ::-1],
        np.array(3),
    ]
    labels = [
        y.astype(float),
        y + 0.5,
        -y,
        y * 10**9,
        np.full(n, np.nan),
        np.eye(4)[y],
        y[:, None],
        y > 0,
        y.astype("U2"),
        y.astype(np.uint64) + 2**63,
        y[:-1],
        y * 0,
        y.astype(object),
        np.array([]),
    ]
    way = rng.randrange(4)
    if way == 0:
        arrays["test_images"] = rng.choice(images_)
    elif way == 1:
        arrays["test_labels"] = rng.choice(labels)
    elif way == 2:
        arrays["classes"] = np.array(
            rng.choice([["a", "a", "b", "c"], ["a"], [], ["a", "b", "c", "d", "e"], [1, 2, 3, 4]])
        )
    else:
        del arrays[rng.choice(list(arrays))]


def bomb(rng, x, y, file):
    """Headers and directories that claim more than there is."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        for name, shape, dtype, content in [
            ("test_images", x.shape, "|u1", x.tobytes()),
            ("test_labels", y.shape, "<i8", y.tobytes()),
        ]:
            if (name == "test_images") == (rng.random() < 0.7):
                shape = rng.choice(
                    [(10**6, 300, 300), (2**40,), (2**62, 2**62), (-1, 8, 8), (12, 8, 8, 1 << 28)]
                )
                content += bytes(rng.choice([0, 10**6]))
            stream = io.BytesIO()
            np.lib.format.write_array_header_1_0(
                stream, {"descr": dtype, "fortran_order": False, "shape": shape}
            )
            out.writestr(f"{name}.npy", stream.getvalue() + content)


def npz(rng, here):
    file, n = here / "set.npz", 12
    x = np.frombuffer(rng.randbytes(n * 64), np.uint8).reshape(n, 8, 8)
    arrays = {"test_images": x, "test_labels": np.arange(n) % 4}
    way = rng.random()
    if way < 0.35:
        npz_edit(rng, arrays)
    if way > 0.9:
        bomb(rng, x, arrays["test_labels"], file)
    else:
        rng.choice([np.savez, np.savez_compressed])(file, **arrays)
        if way >= 0.35:
            file.write_bytes(damaged(rng, file.read_bytes()))
    (loaded, batches), told = watched(lambda: (found := data.load(f"npz:{file}"), list(found)))
    got = torch.cat([255 * b for b, _ in batches]).round().byte().numpy()
    labels = torch.cat([b for _, b in batches]).numpy()
    try:
        with np.load(file, allow_pickle=False) as content:
            expected, y = content["test_images"], content["test_labels"]
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
    ) as error:
        raise Fault(f"an array was accepted that numpy refuses: {error}") from error
    if told:
        return
    if got.shape[1] not in (1, 3):
        raise Fault(f"images of {expected.shape} became {got.shape}, and no word")
    if len(set(loaded.classes)) < len(loaded.classes):
        raise Fault("two classes have one name")
    if expected.dtype != np.uint8:
        if expected.max() < 32_768 or got.max() < 100:
            raise Fault(f"{expected.dtype} up to {expected.max()} was taken as 16 bits, and no word")
        return
    if not np.array_equal(
        got.reshape(-1), (expected if got.shape[1] == 1 else np.moveaxis(expected, 3, 1)).reshape(-1)
    ):
        raise Fault("other pixels than numpy's")
    if not np.array_equal(labels, y.reshape(-1)):
        raise Fault(f"other labels than numpy's: {y.dtype}")


def mnist(rng, here):
    raw, n = here / "MNIST" / "raw", 6
    raw.mkdir(parents=True)
    pixels, y = rng.randbytes(n * 784), bytes(rng.randrange(10) for _ in range(n))
    files = {
        "t10k-images-idx3-ubyte": struct.pack(">IIII", 2051, n, 28, 28) + pixels,
        "t10k-labels-idx1-ubyte": struct.pack(">II", 2049, n) + y,
    }
    hit = rng.choice(list(files))
    files[hit] = (
        damaged(rng, files[hit][:16]) + files[hit][16:] if rng.random() < 0.5 else damaged(rng, files[hit])
    )
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (raw / name).touch()
    for name, content in files.items():
        (raw / name).write_bytes(content)
    (loaded, batches), _ = watched(lambda: (found := data.load("mnist", root=here), list(found)))
    x, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    held = [files[name][16 if "3" in name else 8 :] for name in files]  # no checksum: what is there counts
    if len(x) != n or (255 * x).round().byte().numpy().tobytes() != held[0][: n * 784]:
        raise Fault("other images than the file holds")
    if bytes(labels.tolist()) != held[1][:n] or len(loaded.classes) != 10:
        raise Fault("other labels than the file holds")


# weights


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 3))


class Evil:
    """Makes the file `ran` where it is unpickled."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def odd_state(rng, state, here):
    """A state dict that a file may hold, and should not be taken as it is."""
    name, value = rng.choice([item for item in state.items() if item[1].is_floating_point()])
    itself = dict(state)
    itself["again"] = itself
    deep = dict(state)
    for _ in range(200):
        deep = {"state_dict": deep}
    changed = [
        value.to(torch.int64),
        value > 0,
        value.to(torch.complex64),
        value.half(),
        value.bfloat16(),
        value.to(torch.float8_e4m3fn),
        torch.full_like(value, float("nan")),
        torch.full_like(value, 3e38) * 10,
        value.to_sparse(),
        value.to("meta"),
        value.flatten(),
        value[:0],
        torch.zeros(()),
        torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
        value.expand(2, *value.shape),
        nn.Parameter(value),
        value.tolist(),
        None,
        "text",
        torch.zeros(1).expand(10**9),
    ]
    whole = [
        itself,
        deep,
        {"model": {"net": state}},
        list(state.values()),
        {},
        [],
        None,
        3,
        value,
        {"state_dict": [state]},
        {k.replace(".", "_"): v for k, v in state.items()},
        {**state, "hook": Evil(here / "ran")},
        {"model": Evil(here / "ran")},
        {1: value},
        {"module." + k: v for k, v in state.items()},
        {**state, "extra": value},
    ]
    return rng.choice([{**state, name: rng.choice(changed)}, rng.choice(whole)])


def bad_safetensors(rng, content):
    """A header that claims what is not there."""
    size = struct.unpack("<Q", content[:8])[0]
    head = json.loads(content[8 : 8 + size])
    name = rng.choice([key for key in head if key != "__metadata__"])
    way = rng.randrange(5)
    if way == 0:
        return struct.pack("<Q", rng.choice([0, 2**31, 2**63, len(content)])) + content[8:]
    if way == 1:
        head[name]["shape"] = rng.choice([[10**6, 10**6], [-1], [2**63], [], "x"])
    elif way == 2:
        head[name]["dtype"] = rng.choice(["I32", "BOOL", "F64", "X", "U8"])
    elif way == 3:
        head[name]["data_offsets"] = rng.choice([[0, 10**12], [4, 0], [0, 0], [-4, 4]])
    else:
        head["__metadata__"] = rng.choice([{"a": 1}, [], "x", {"a": "b"}])
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


def weights(rng, here):
    state, way = net().state_dict(), rng.random()
    stream, ending = io.BytesIO(), rng.choice([".pt", ".pth", ".safetensors"])
    if ending == ".safetensors":
        content = safetensors_of(state)
        content = bad_safetensors(rng, content) if way < 0.4 else damaged(rng, content)
    else:
        odd = odd_state(rng, state, here) if way < 0.6 else state
        legacy = rng.random() < 0.2
        torch.save(odd, stream, _use_new_zipfile_serialization=not legacy)
        content = stream.getvalue() if way < 0.6 else damaged(rng, stream.getvalue())
        if rng.random() < 0.04:
            content = pickle.dumps(Evil(here / "ran"))
    file = here / f"weights{ending}"
    file.write_bytes(content)
    model = net()
    with torch.no_grad():
        model[0].weight.mul_(-1)
    before = bits(model)
    try:
        _, told = watched(lambda: models.load_weights(model, file))
    except poise.InputError:
        if bits(model) != before:
            raise Fault("refused, and the model is another one") from None
        raise
    after = model.state_dict()
    if told:
        return
    if any(v.dtype != state[k].dtype or v.shape != state[k].shape for k, v in after.items()):
        raise Fault("the model's tensors are of another kind now")
    given = given_tensors(content, ending)
    for name, value in after.items():
        if not value.isfinite().all():
            raise Fault(f"{name} is not finite, and no word")
        source = given[name]
        if not source.is_floating_point() and name != "1.num_batches_tracked":
            raise Fault(f"{source.dtype} weights were taken")
        if not torch.equal(source.to(value.dtype), value):
            raise Fault(f"{name} is not what the file holds")


def given_tensors(content, ending):
    """What the formats' own readers give, the zip's checksums verified."""
    if ending == ".safetensors":
        return read_safetensors(content)
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as held:
            try:
                broken = held.testzip()
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
                raise Fault(f"weights were taken from a zip that is broken: {error}") from error
            if broken:
                raise Fault(f"weights were taken from {broken}, whose checksum is wrong")
    found = torch.load(io.BytesIO(content), weights_only=True)
    while any(isinstance(v, dict) for v in found.values()):
        found = next(v for v in found.values() if isinstance(v, dict))
    return {name.removeprefix("module."): value for name, value in found.items()}


# runs


class Base:
    """Undamaged runs, made once in each process."""

    def __init__(self, here):
        self.train, self.audit, self.stopped = here / "train", here / "audit", here / "stopped"
        self.x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        few = data.load("digits", images=24)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.net = training.train(job(epochs=1), digits(), defenses.build("vanilla"), self.train)
            self.whole = bits(
                training.train(job(epochs=3), digits(), defenses.build("vanilla"), here / "whole")
            )
            self.stop()
            known = {"fgsm": attacks.build("fgsm", eps=0.1), "pgd": attacks.build("pgd", eps=0.1, steps=2)}
            poise_audit()(str(self.train), few, known, self.audit, probe=0)
        self.logits = self.net(self.x).detach()
        self.read = report.read(self.audit)
        self.sets = {}
        for name in ("set.npz", "pictures"):
            made = (few.pixels[:4].float() / 255 * 255).round() / 255
            moved = ((made * 255 + 8).clamp(max=255).round()) / 255
            self.sets[here / name] = adversarial_sets.save(here / name, made, moved, few.y[:4], eps=0.05)

    def stop(self):
        steps = iter(range(10))

        def progress(*_):
            if next(steps) == 4:
                raise Stop

        try:
            training.train(
                job(epochs=3), digits(), defenses.build("vanilla"), self.stopped, progress=progress
            )
        except Stop:
            return
        raise AssertionError("the training was to be stopped")


def poise_audit():
    from poise.auditing.audit import audit

    return audit


def hostile(rng, file, here):
    """A job.json that names code, or what would be fetched."""
    content = json.loads(file.read_text())
    (here / "evil.py").write_text(f"import os\nos.mkdir({str(here / 'ran')!r})\ndef f(**_):\n    pass\n")
    content["job"]["model"] = rng.choice(
        [f"{here}/evil.py:f", "hf/someone/else", "robustbench/Standard", "timm/resnet18"]
    )
    if rng.random() < 0.5:
        content["key"] = store.key_of(content["job"])
    file.write_text(json.dumps(content))


def train_runs(rng, here, base):
    run = here / "run"
    shutil.copytree(base.train, run)
    way = rng.random()
    if way < 0.2:
        hostile(rng, run / "job.json", here)
    elif way < 0.6:
        json_file(rng, run / "job.json")
    elif way < 0.9:  # the others are whole, and must come back
        file = run / "model.safetensors"
        file.write_bytes(damaged(rng, file.read_bytes()))
    model, told = watched(lambda: poise.load(run))
    if not told and not torch.equal(model(base.x), base.logits):
        raise Fault("another model came back, and no word")


def audits(rng, here, base):
    run = here / "run"
    shutil.copytree(base.audit, run)
    way, file = rng.random(), run / rng.choice(["fgsm", "pgd"])
    if way < 0.35:
        json_file(rng, rng.choice([run, file]) / "job.json")
    elif way < 0.5:
        frame = pl.read_parquet(file / "records.parquet")
        frame = rng.choice(
            [
                lambda: frame.head(12),
                lambda: frame.head(0),
                lambda: frame.drop("ssim"),
                lambda: frame.with_columns(ssim=float("nan")),
                lambda: frame.with_columns(y=pl.lit(99)),
                lambda: frame.with_columns(linf=pl.lit("x")),
                lambda: pl.concat([frame, frame]),
                lambda: frame.with_columns(y=-pl.col("y")),
                lambda: frame.with_columns(clean=pl.col("attacked")),
                lambda: frame.with_columns(y=pl.lit(None)),
                lambda: frame.reverse(),
            ]
        )()
        frame.write_parquet(file / "records.parquet")
    elif way < 0.7:
        table = file / "records.parquet"
        table.write_bytes(damaged(rng, table.read_bytes()))
    elif way < 0.9:
        table = file / "images.safetensors"
        table.write_bytes(damaged(rng, table.read_bytes()))
    elif way < 0.95:
        hostile(rng, run / "job.json", here)
    else:
        file.rename(run / rng.choice(["$\\frac{$", "<script>", "a" * 255, "x\ny", "\udcff"]))
    found, told = watched(lambda: report.read(run))
    frame, more = watched(lambda: report.summary([found]))
    page, last = watched(
        lambda: (
            report.markdown(frame),
            report.latex(frame),
            overview.page([found], frame, threshold=0.5) if rng.random() < 0.3 else "",
        )
    )
    if "<script>" in page[2].partition("<body")[2] or "<script>" in page[0]:
        raise Fault("a page holds what a run folder says, raw")
    if told or more or last:
        return
    mine = {part.attack: part.records for part in base.read.attacked}
    if len(found.attacked) != len(mine):
        raise Fault(f"{len(found.attacked)} of {len(mine)} attacks, and no word")
    for part in found.attacked:
        expected = (
            mine.get(part.attack) or dict(zip(("fgsm", "pgd"), mine.values(), strict=True))[part.name]
        )
        for name, value in expected.tensors().items():
            if not torch.equal(getattr(part.records, name), value):
                raise Fault(f"other {name} than was written, and no word")


def checkpoints(rng, here, base):
    run = here / "run"
    shutil.copytree(base.stopped, run)
    names = [path.name for path in run.iterdir() if path.is_file()]
    for name in rng.sample(sorted(names), rng.choice([1, 1, 2])):
        file = run / name
        if name == "job.json":
            json_file(rng, file)
        elif name.startswith("checkpoint") and rng.random() < 0.4:
            edit_facts(rng, file)
        else:
            file.write_bytes(damaged(rng, file.read_bytes()))
    model, _ = watched(lambda: training.train(job(epochs=3), digits(), defenses.build("vanilla"), run))
    if bits(model) != base.whole:
        raise Fault("trained, with other weights")


def edit_facts(rng, file):
    """One fact beside the tensors, another one of the same length or kind."""
    tensors, facts = store.read_tensors(file)
    name = rng.choice(["step", "rows", "scaler", "seconds"])
    facts[name] = rng.choice(["3", "99", "-1", "[]", "{}", "null", "1e400", '"x"', "[{}]", "NaN"])
    store.write_tensors(file, tensors, facts)


def sets(rng, here, base):
    source = rng.choice(list(base.sets))
    path = here / source.name
    if source.is_dir():
        shutil.copytree(source, path)
        file = rng.choice(sorted(p for p in path.rglob("*") if p.is_file()))
    else:
        file = shutil.copy(source, path)
        file = Path(file)
    if file.suffix == ".json":
        json_file(rng, file)
    else:
        file.write_bytes(damaged(rng, file.read_bytes()))
    found, told = watched(lambda: adversarial_sets.load(path))
    expected = base.sets[source]
    same = all(torch.equal(getattr(found, n), getattr(expected, n)) for n in ("x", "x_adv", "y"))
    if not told and not (same and found.eps == expected.eps and found.norm == expected.norm):
        raise Fault("another set came back, and no word")


# one after the other

KINDS = {
    images: 130,
    folders: 50,
    npz: 90,
    mnist: 20,
    weights: 90,
    train_runs: 40,
    audits: 60,
    checkpoints: 24,
    sets: 36,
}
CASES = [(kind, number) for kind, count in KINDS.items() for number in range(count)]


def watched(act):
    """What `act` gives, and the warnings that it gave."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        value = act()
    return value, [
        str(w.message)
        for w in told
        if issubclass(w.category, UserWarning) and "torch" not in str(w.filename)
    ]


def judged(kind, number, base, ran):
    """ "right", "refused: ...", or "fault: ..." of one case."""
    rng = random.Random(f"{kind.__name__} {number}")
    ran.clear()
    high_water(reset=True)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of this process: a busy machine is no fault
    here = Path(tempfile.mkdtemp(prefix="fuzz-"))
    before = high_water()
    try:
        kind(rng, here, *([base] if kind in (train_runs, audits, checkpoints, sets) else []))
        verdict = "right"
    except poise.InputError as error:
        verdict = f"refused: {error}"
        if "\n" in str(error):
            verdict = f"fault: more than one line: {error}"
    except Fault as error:
        verdict = f"fault: {error}"
    except Slow:
        verdict = f"fault: longer than {SECONDS} s"
    except Exception:
        verdict = "fault: " + "".join(traceback.format_exc().strip().splitlines()[-7:])
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        code = (here / "ran").exists()
        shutil.rmtree(os.fsencode(here), ignore_errors=True)
    if code or ran:
        return f"fault: code was run or something fetched: {ran}"
    if high_water() - before > BYTES - 5e8:  # half a gigabyte is torch and poise themselves
        return f"fault: {(high_water() - before) / 1e9:.1f} GB more memory"
    return verdict


def high_water(*, reset=False):
    """The largest memory of this process since the last reset, in bytes."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def main(part, parts, begin):
    """Every case of this part from the one named on, a line before and a line after each."""
    torch.set_num_threads(1)
    ran, out = [], os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what else is printed is no verdict

    def audit(event, values):
        if event in ("os.system", "socket.connect", "os.exec", "os.posix_spawn") or (
            event == "subprocess.Popen" and "git" not in str(values[0])
        ):
            ran.append(event)

    def slow(*_):
        raise Slow

    signal.signal(signal.SIGPROF, slow)
    used = 1024 * int(Path("/proc/self/status").read_text().partition("VmSize:")[2].split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (used + 6 * 10**9,) * 2)  # so that a bomb hurts nobody else
    with tempfile.TemporaryDirectory() as place:
        base = Base(Path(place))
        sys.addaudithook(audit)
        for index in range(begin, len(CASES)):
            if index % parts != part:
                continue
            kind, number = CASES[index]
            print(json.dumps({"case": index}), file=out, flush=True)
            began = time.monotonic()
            verdict = judged(kind, number, base, ran)
            print(
                json.dumps({"case": index, "verdict": verdict, "seconds": time.monotonic() - began}),
                file=out,
                flush=True,
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
