"""Images in files: how they are decoded, prepared, read ahead and found."""

import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import poise
from nets import shuffled
from poise import data
from poise.data import Preparation, pictures
from poise.data.decoding import decode, prepare
from poise.data.pictures import Pictures


def noise(height, width, channels=3, seed=0):
    """Pixels that no resizing leaves alone."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, image, **options):
    """The image, given as pixels or Pillow's, in a file whose folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(path, **options)
    return path


def tree(top, sizes=((12, 15), (20, 9), (16, 16)), classes=("a", "b"), channels=3):
    """A folder with one noisy PNG of each size in each class."""
    for label, kind in enumerate(classes):
        for place, (height, width) in enumerate(sizes):
            save(top / kind / f"{place}.png", noise(height, width, channels, seed=10 * label + place))
    return top


def only(path, **preparation):
    """The pixels (c, h, w) that a file is read as, beside another class's file of the same kind."""
    (path.parent.parent / "z").mkdir(exist_ok=True)
    (path.parent.parent / "z" / path.name).write_bytes(path.read_bytes())
    images = data.load(f"folder:{path.parent.parent}", preparation=Preparation(**preparation))
    return images.pixels.read(torch.tensor([0]))[0]


def whole(images):
    """All pixels."""
    return images.pixels.read(torch.arange(len(images)))


# kinds of files


def test_grey_png_stays_grey_bit_for_bit(tmp_path):
    pixels = noise(5, 7, 1)
    assert torch.equal(only(save(tmp_path / "a" / "x.png", pixels)), torch.from_numpy(pixels)[None])


def test_colour_png_stays_in_colour_bit_for_bit(tmp_path):
    pixels = noise(5, 7)
    found = only(save(tmp_path / "a" / "x.png", pixels))
    assert torch.equal(found, torch.from_numpy(pixels).permute(2, 0, 1))


def test_16_bit_png_gives_its_high_byte(tmp_path):
    values = np.array([[0, 255, 256, 257], [32767, 32768, 65279, 65535]], dtype=np.uint16)
    found = only(save(tmp_path / "a" / "x.png", values))
    assert found.tolist() == [[[0, 0, 1, 1], [127, 128, 254, 255]]]


def test_16_bit_tiff_gives_its_high_byte_in_either_byte_order(tmp_path):
    values = np.array([[0x0102, 0xFFEE]], dtype=np.uint16)
    assert only(save(tmp_path / "a" / "x.tif", values)).tolist() == [[[1, 255]]]
    big = Image.frombytes("I;16B", (2, 1), values.astype(">u2").tobytes())
    assert only(save(tmp_path / "b" / "y.tif", big)).tolist() == [[[1, 255]]]


def test_palette_png_gives_the_colours_of_its_palette(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert only(save(tmp_path / "a" / "x.png", image)).tolist() == [[[10, 200]], [[20, 100]], [[30, 50]]]


def test_transparent_parts_are_seen_on_white(tmp_path):
    pixels = np.array([[[100, 0, 50, 255], [100, 0, 50, 0], [100, 0, 50, 51]]], dtype=np.uint8)
    # 51 of 255 is a fifth: 0.2 * 100 + 0.8 * 255 = 224, 204 and 214
    found = only(save(tmp_path / "a" / "x.png", pixels))
    assert found.permute(1, 2, 0).tolist() == [[[100, 0, 50], [255, 255, 255], [224, 204, 214]]]


def test_transparent_grey_stays_grey(tmp_path):
    pixels = np.array([[[100, 255], [100, 0]]], dtype=np.uint8)
    found = only(save(tmp_path / "a" / "x.png", Image.fromarray(pixels, "LA")))
    assert found.tolist() == [[[100, 255]]]


def test_a_transparent_palette_entry_is_seen_on_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    found = only(save(tmp_path / "a" / "x.png", image, transparency=1))
    assert found.permute(1, 2, 0).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_cmyk_jpeg_has_the_colours_that_were_printed(tmp_path):
    ink = Image.new("CMYK", (8, 8), (255, 0, 0, 0))  # full cyan: no red, all green and blue
    found = only(save(tmp_path / "a" / "x.jpg", ink, quality=100))
    assert found.shape == (3, 8, 8)
    assert found[0].max() <= 3 and found[1:].min() >= 252


def test_black_and_white_png_is_0_and_255(tmp_path):
    image = Image.fromarray(np.array([[True, False]]))
    assert image.mode == "1"
    assert only(save(tmp_path / "a" / "x.png", image)).tolist() == [[[255, 0]]]


def test_grey_of_colours_has_the_weights_of_itu_601():
    image = Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], dtype=np.uint8))
    # 0.299, 0.587 and 0.114 of 255 are 76.2, 149.7 and 29.1
    assert np.asarray(decode(image, "it", "grey")).tolist() == [[76, 150, 29]]


def test_grey_and_colour_files_together_become_colour(tmp_path):
    grey = noise(4, 4, 1)
    save(tmp_path / "a" / "x.png", grey)
    save(tmp_path / "b" / "x.png", noise(4, 4))
    images = data.load(f"folder:{tmp_path}")
    assert images.shape == (3, 4, 4)
    assert torch.equal(whole(images)[0], torch.from_numpy(grey).expand(3, 4, 4))
    assert data.load(f"folder:{tmp_path}", preparation=Preparation(channels="grey")).shape == (1, 4, 4)


# preparation, against torchvision


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [5, 8, 13, 24])
@pytest.mark.parametrize("sides", [(16, 16), (17, 31), (40, 9), (13, 14)])
def test_resizing_and_the_centre_are_torchvisions(sides, size, interpolation):
    image = Image.fromarray(noise(*sides))
    way = v2.InterpolationMode(interpolation)
    for resize in (None, size, size + 3):
        wanted = v2.CenterCrop(size)(v2.Resize(resize or size, interpolation=way)(image))
        found = prepare(image, Preparation(size=size, resize=resize, interpolation=interpolation))
        assert np.array_equal(found, np.asarray(wanted).transpose(2, 0, 1))


@pytest.mark.parametrize("sides", [(16, 16), (17, 31), (40, 9), (9, 8), (10, 13), (11, 7)])
def test_the_window_is_torchvisions_centre_crop(sides):
    image = Image.fromarray(noise(*sides, channels=1))
    for crop in (10, 11, 16):
        found = prepare(image, Preparation(crop=crop))
        assert np.array_equal(found[0], np.asarray(v2.CenterCrop(crop)(image)))


def test_the_window_is_cut_before_resizing():
    pixels = np.zeros((8, 8), dtype=np.uint8)
    pixels[2:6, 2:6] = 255  # the window of 4x4 alone is white
    assert prepare(Image.fromarray(pixels), Preparation(crop=4, size=3)).tolist() == [[[255] * 3] * 3]


def test_folders_are_what_torchvision_sees(tmp_path):
    tree(tmp_path, classes=("b10", "B9", "a"))
    for place in (3, 1, 4, 0, 5, 2):
        save(tmp_path / "a" / f"deeper{place}" / "0.png", noise(30, 20, seed=70 + place))
    (tmp_path / "a" / "notes.txt").write_text("no image")
    images = data.load(f"folder:{tmp_path}", preparation=Preparation(size=10))
    steps = v2.Compose([v2.Resize(10), v2.CenterCrop(10), v2.PILToTensor()])
    found = ImageFolder(tmp_path, steps)
    assert images.classes == tuple(found.classes) == ("B9", "a", "b10")
    assert images.y.tolist() == [y for _, y in found] and len(images) == 15
    assert torch.equal(whole(images), torch.stack([x for x, _ in found]))


@pytest.mark.parametrize(
    ("mine", "own", "both"),
    [
        ({}, {"size": 224, "resize": 256}, {"size": 224, "resize": 256}),
        ({"size": 32}, {"size": 224, "resize": 256}, {"size": 32}),
        ({"resize": 240}, {"size": 224, "resize": 256}, {"size": 224, "resize": 240}),
        ({"channels": "grey"}, {"size": 8, "channels": "rgb"}, {"size": 8, "channels": "grey"}),
        ({"allow_empty": True}, {"drop": ("x",)}, {"drop": ("x",), "allow_empty": True}),
    ],
)
def test_what_is_asked_for_stands_over_the_data_sets_own(mine, own, both):
    assert Preparation(**mine).over(Preparation(**own)) == Preparation(**both)


def test_images_in_memory_are_prepared_like_files(tmp_path):
    images = data.load("digits", images=20)
    by = Preparation(size=12, channels="rgb")
    grown = data.load("digits", images=20, preparation=by)
    for place in range(20):
        levels = np.round(images.pixels[place, 0].numpy() * (255 / 16)).astype(np.uint8)
        save(tmp_path / str(int(images.y[place])) / f"{place:02d}.png", levels)
    files = data.load(f"folder:{tmp_path}", preparation=by)
    order = images.y.argsort(stable=True)
    assert grown.shape == (3, 12, 12) and grown.scale == 255
    assert torch.equal(whole(grown)[order], whole(files))


# splits, paths, classes


def test_the_split_asked_for_is_read(tmp_path):
    for place, split in enumerate(("train", "test", "val")):
        tree(tmp_path / split, sizes=[(4, 4)] * (place + 1))
    sizes = [len(data.load(f"folder:{tmp_path}", split=split)) for split in ("train", "test", "val")]
    assert sizes == [2, 4, 6]
    inner = data.load(f"folder:{tmp_path / 'val'}", split="val")
    assert len(inner) == 6 and inner.name == tmp_path.name


@pytest.mark.parametrize(("split", "name"), [("train", "Training"), ("test", "Testing"), ("val", "valid")])
def test_splits_go_by_their_other_names_too(split, name, tmp_path):
    for other in ("Training", "Testing", "valid"):
        tree(tmp_path / other, sizes=[(4, 4)] * (2 if other == name else 1))
    images = data.load(f"folder:{tmp_path}", split=split)
    assert len(images) == 4 and images.classes == ("a", "b")


def test_a_class_that_another_split_has_keeps_its_label(tmp_path):
    tree(tmp_path / "train", classes=("a", "b", "c"), sizes=[(4, 4)])
    tree(tmp_path / "test", classes=("a", "c"), sizes=[(4, 4)])
    for path in (tmp_path, tmp_path / "test"):
        images = data.load(f"folder:{path}", preparation=Preparation(allow_empty=True))
        assert images.classes == ("a", "b", "c") and images.y.tolist() == [0, 2]


def test_dropped_classes_leave_no_gap(tmp_path):
    tree(tmp_path, classes=("a", "b", "c"), sizes=[(4, 4)])
    images = data.load(f"folder:{tmp_path}", preparation=Preparation(drop=("b",)))
    assert images.classes == ("a", "c") and images.y.tolist() == [0, 1]
    part = data.load("digits", preparation=Preparation(drop=("0", "5")))
    every = data.load("digits")
    assert part.classes == tuple("12346789") and part.scale == 16
    assert [part.classes[y] for y in part.y] == [str(int(y)) for y in every.y if y not in (0, 5)]


def test_paths_with_spaces_and_letters_of_any_language(tmp_path):
    top = tree(tmp_path / "Röntgen bilder" / "日本 #1", classes=("größe a", "ß %20"), sizes=[(4, 4)])
    images = data.load(f"folder:{top}")
    assert images.classes == ("größe a", "ß %20") and images.name == "日本 #1"
    assert torch.equal(whole(images)[0], torch.from_numpy(noise(4, 4)).permute(2, 0, 1))


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    tree(tmp_path, sizes=[(4, 4)])
    (tmp_path / "a" / "._0.png").write_bytes(b"resource fork")
    (tmp_path / "a" / ".cache").mkdir()
    (tmp_path / "a" / ".cache" / "0.png").write_bytes(b"thumbnail")
    (tmp_path / ".git").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    images = data.load(f"folder:{tmp_path}")
    assert images.classes == ("a", "b") and len(whole(images)) == 2


def test_loading_decodes_nothing(tmp_path, monkeypatch):
    tree(tmp_path, sizes=[(4, 4)])
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded while loading"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded while loading"))
    assert len(data.load(f"folder:{tmp_path}")) == 2
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("looked into a file without need"))
    by = Preparation(size=4, channels="rgb")
    assert data.load(f"folder:{tmp_path}", preparation=by).shape == (3, 4, 4)


# reading ahead


@dataclass(eq=False)
class Counted:
    """Flat images numbered by their grey value; counts what is asked of it."""

    n: int
    wait: float = 0.0
    asked: list = field(default_factory=list)
    reached: dict = field(default_factory=dict)  # image -> an event to set

    def __len__(self):
        return self.n

    def name(self, i):
        return f"image {i}"

    def image(self, i):
        self.asked.append(i)
        if self.wait and i % 2 == 0:
            time.sleep(self.wait)  # so that the later of a pair is done first
        if i in self.reached:
            self.reached[i].set()
        return Image.new("L", (2, 2), i)

    def digest(self, i):
        return bytes([i])

    def alike(self):
        return True


def counted(source):
    """All images of the source, in batches of 4."""
    images = Pictures(source, torch.arange(len(source)), Preparation(channels="grey"), (1, 2, 2))
    return data.ImageSet("counted", images, torch.zeros(len(source)).long(), ("a", "b"), batch_size=4)


def test_at_most_one_batch_is_decoded_ahead():
    source = Counted(40)
    for done, (x, _) in enumerate(counted(source)):
        assert (255 * x[:, 0, 0, 0]).tolist() == pytest.approx(list(range(4 * done, 4 * done + 4)))
        assert len(source.asked) <= 4 * (done + 2)
    assert sorted(source.asked) == list(range(40))


def test_the_next_batch_is_decoded_while_one_is_in_use():
    source = Counted(8, reached={7: threading.Event()})
    stream = iter(counted(source))
    next(stream)  # and nothing more is asked of it
    assert source.reached[7].wait(30)


def test_a_stream_that_is_left_stops_its_threads():
    source = Counted(40)
    stream = iter(counted(source))
    next(stream)
    stream.close()
    assert len(source.asked) <= 8
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


@pytest.mark.parametrize("threads", [1, 8])
def test_threads_and_their_order_change_nothing(threads, monkeypatch):
    monkeypatch.setattr(pictures, "THREADS", threads)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    images = counted(Counted(12, wait=0.003))
    x = torch.cat([x for x, _ in images.batches(order)])
    assert torch.equal((255 * x[:, 0, 0, 0]).round().long(), order)


def test_shuffling_files_is_shuffling_their_pixels(tmp_path):
    images = data.load(f"folder:{tree(tmp_path)}", preparation=Preparation(size=6), batch_size=4)
    held = images.on("cpu")
    assert isinstance(held.pixels, torch.Tensor)
    for lazy, there in ((images, held), (images.take(images.y == 1), held.take(held.y == 1))):
        for (x, y), (other_x, other_y) in zip(shuffled(lazy, 3), shuffled(there, 3), strict=True):
            assert torch.equal(x, other_x) and torch.equal(y, other_y)
        assert lazy.fingerprint() == there.fingerprint()


def test_what_does_not_fit_on_the_device_is_sent_batch_by_batch(tmp_path):
    images = data.load(f"folder:{tree(tmp_path)}", preparation=Preparation(size=6), batch_size=4)
    size = 6 * 3 * 6 * 6
    sent, held = images.on("meta", room=size - 1), images.on("meta", room=size)
    assert isinstance(sent.pixels, Pictures) and held.pixels.device.type == "meta"
    for found in (sent, held, data.load("digits", images=5).on("meta", room=0)):
        x, y = next(iter(found))
        assert x.device.type == "meta" and x.dtype == torch.float32 and y.device.type == "cpu"
    assert sent.fingerprint() == held.fingerprint() == images.fingerprint()


def test_an_evaluation_of_files_is_that_of_their_pixels(tmp_path):
    images = data.load(f"folder:{tree(tmp_path)}", preparation=Preparation(size=6), batch_size=4)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(108, 2))
    attack = poise.attacks.confsmooth(eps=0.03, steps=2)
    lazy, held = (poise.evaluate(model, found, attack).frame() for found in (images, images.on("cpu")))
    assert lazy.equals(held) and len(lazy) == 6


# fingerprints


def test_a_fingerprint_is_of_the_files_the_labels_and_the_preparation(tmp_path):
    def of(top, **preparation):
        return data.load(
            f"folder:{top}", preparation=Preparation(**{"size": 4} | preparation)
        ).fingerprint()

    first, same, other = (tree(tmp_path / name) for name in ("first", "same", "other"))
    (same / "a").rename(same / "0")  # names are no part of it
    assert of(first) == of(same)
    prints = [of(first), of(first, size=5), of(first, resize=5), of(first, crop=4)]
    prints += [of(first, channels="grey"), of(first, interpolation="bicubic")]
    save(other / "b" / "0.png", noise(12, 15, seed=99))
    prints.append(of(other))
    (first / "a" / "2.png").rename(first / "b" / "0-before.png")  # the same order, another label
    prints.append(of(first))
    assert len(set(prints)) == len(prints)
