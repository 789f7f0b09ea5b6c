"""Folders and image files that cannot be used: one line that says what, where, and the way out."""

import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from poise import InputError, data
from poise.data import Preparation


def png(side=4, grey=7):
    """The bytes of a flat grey PNG."""
    file = io.BytesIO()
    Image.new("L", (side, side), grey).save(file, "PNG")
    return file.getvalue()


def jpeg(side=32):
    """The bytes of a noisy JPEG."""
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (side, side), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def bomb(width, height):
    """The bytes of a PNG whose header says that size, of a few hundred bytes."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def tree(top, **files):
    """A folder a class, each with these files' bytes: a=[...], b=[...]."""
    for kind, contents in files.items():
        (top / kind).mkdir(parents=True)
        for place, content in enumerate(contents):
            (top / kind / f"{place}.png").write_bytes(content)
    return top


def refusal(top, **options):
    """The one line that reading the folder ends in, be it at loading or at decoding."""
    with pytest.raises(InputError) as caught:
        list(data.load(f"folder:{top}", **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_with_one_class(tmp_path):
    said = refusal(tree(tmp_path / "x", only=[png()]))
    assert "1 class (only)" in said and "at least two" in said and str(tmp_path / "x") in said


def test_a_folder_with_images_and_no_classes(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    assert "no classes" in refusal(tmp_path) and "a folder of images a class" in refusal(tmp_path)


def test_a_folder_that_is_not_there(tmp_path):
    assert str(tmp_path / "nowhere") in refusal(tmp_path / "nowhere")


def test_class_folders_without_any_images(tmp_path):
    top = tree(tmp_path / "x", a=[], b=[])
    (top / "a" / "notes.txt").write_text("none")
    assert "there are no images" in refusal(top) and str(top) in refusal(top)
    assert "there are no images" in refusal(top, preparation=Preparation(allow_empty=True))


def test_an_empty_class(tmp_path):
    top = tree(tmp_path / "x", a=[png()], empty=[], c=[png()])
    said = refusal(top)
    assert "no images of 1 class (empty)" in said and "--read.drop" in said and "--read.allow-empty" in said
    kept = data.load(f"folder:{top}", preparation=Preparation(allow_empty=True))
    assert kept.classes == ("a", "c", "empty") and kept.y.tolist() == [0, 1]
    dropped = data.load(f"folder:{top}", preparation=Preparation(drop=("empty",)))
    assert dropped.classes == ("a", "c")


def test_a_class_to_be_dropped_that_is_not_there(tmp_path):
    top = tree(tmp_path, a=[png()], b=[png()])
    assert "drop names normal, and" in refusal(top, preparation=Preparation(drop=("normal",)))
    assert "1 class (b)" in refusal(top, preparation=Preparation(drop=("a",)))


def test_a_folder_of_another_split(tmp_path, monkeypatch):
    tree(tmp_path / "train", a=[png()], b=[png()])
    said = refusal(tmp_path / "train")
    assert "is the folder of split 'train', and 'test' is asked for" in said and "--split train" in said
    monkeypatch.chdir(tmp_path / "train")
    assert "is the folder of split 'train'" in refusal(".")
    said = refusal(tmp_path)
    assert "has the split train and no 'test'" in said and "--split train" in said


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (jpeg()[:-200], "truncated"),
        (b"", "no known image format"),
        (b"<html>404</html>", "no known image format"),
        (png(64)[:60], "image"),
        (bytes([*png(64)[:50], 1, 2, 3, *png(64)[53:]]), "image"),
    ],
    ids=["truncated JPEG", "empty file", "web page", "truncated PNG", "broken PNG"],
)
def test_a_damaged_file(content, reason, tmp_path):
    top = tree(tmp_path / "with space", a=[jpeg(), content, jpeg()], b=[jpeg()])
    name = str(top / "a" / "1.png")
    by = Preparation(size=16)
    said = refusal(top, preparation=by)
    assert name in said and reason in said and "--read.skip-damaged" in said
    with pytest.warns(UserWarning, match="left out 1 of 4 images that cannot be read") as caught:
        images = data.load(f"folder:{top}", preparation=Preparation(size=16, skip_damaged=True))
    assert any(name in str(warning.message) for warning in caught)  # beside those of other tests' files
    assert images.y.tolist() == [0, 0, 1] and len(next(iter(images))[0]) == 3


def test_many_damaged_files_are_counted_and_some_named(tmp_path):
    top = tree(tmp_path, a=[png()] + [b"no"] * 20, b=[png()])
    with pytest.warns(UserWarning, match=r"left out 20 of 22 .* and 8 more"):
        assert len(data.load(f"folder:{top}", preparation=Preparation(skip_damaged=True))) == 2


def test_a_class_of_damaged_files_only(tmp_path):
    top = tree(tmp_path, a=[png()], b=[b"no"])
    with pytest.warns(UserWarning, match="left out 1"):
        assert "no images of 1 class (b)" in refusal(top, preparation=Preparation(skip_damaged=True))


def test_nothing_but_damaged_files(tmp_path):
    top = tree(tmp_path, a=[b"no"], b=[b"no"])
    with pytest.warns(UserWarning, match="left out 2 of 2"):
        said = refusal(top, preparation=Preparation(skip_damaged=True, allow_empty=True))
    assert "no images of 2 classes (a, b)" in said


def test_nothing_is_warned_of_where_nothing_is_damaged(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        top = tree(tmp_path, a=[png()], b=[png()])
        assert len(data.load(f"folder:{top}", preparation=Preparation(skip_damaged=True))) == 2


def test_a_file_that_goes_away_after_loading(tmp_path):
    top = tree(tmp_path, a=[png()], b=[png()])
    images = data.load(f"folder:{top}")
    (top / "b" / "0.png").unlink()
    with pytest.raises(InputError, match=r"b/0\.png.*cannot be read"):
        list(images)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("by", [Preparation(), Preparation(size=8, channels="grey")])
@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side, by, tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded"))
    top = tree(tmp_path / "x", a=[bomb(side, side)], b=[bomb(side, side)])
    said = refusal(top, preparation=by)
    assert str(top / "a" / "0.png") in said and "at most 89,478,485 are decoded" in said
    assert ("10000 x 10000 pixels" if side == 10_000 else "178 million") in said


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_decompression_bomb_is_left_out_on_request(side, tmp_path):
    top = tree(tmp_path, a=[bomb(side, side), png()], b=[png()])
    with pytest.warns(UserWarning, match="left out 1 of 3 images that cannot be read") as caught:
        assert len(data.load(f"folder:{top}", preparation=Preparation(skip_damaged=True))) == 2
    assert len(caught) == 1


def test_the_refusal_of_a_decompression_bomb_is_one_line_and_no_warning(tmp_path):
    top = tree(tmp_path, a=[bomb(10_000, 10_000)], b=[png()])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert "10000 x 10000 pixels" in refusal(top)
    assert not caught


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_called_so_where_warnings_are_errors(tmp_path):
    top = tree(tmp_path, a=[bomb(10_000, 10_000)], b=[png()])
    said = refusal(top, preparation=Preparation(size=8, channels="grey"))
    assert "more than 89 million pixels" in said


def test_the_largest_image_is_just_small_enough():
    """9,459 x 9,459 = 89,472,681 pixels are under the limit, one more row and column over it."""
    from poise.data.decoding import open_image

    assert open_image(io.BytesIO(bomb(9_459, 9_459)), "it").size == (9_459, 9_459)
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(InputError, match="9460 x 9460"):
        open_image(io.BytesIO(bomb(9_460, 9_460)), "it")


def test_images_of_different_sizes(tmp_path):
    top = tree(tmp_path, a=[png(4), png(5)], b=[png(4)])
    said = refusal(top)
    assert str(top / "a" / "1.png") in said and "5 x 5" in said and "4 x 4" in said
    assert "--read.size" in said
    with pytest.raises(InputError, match="different sizes"):
        data.load(f"folder:{top}")  # by the headers, before anything is attacked
    assert data.load(f"folder:{top}", preparation=Preparation(crop=3)).shape == (1, 3, 3)


def test_a_file_that_changes_its_size_after_loading(tmp_path):
    top = tree(tmp_path, a=[png()], b=[png()])
    images = data.load(f"folder:{top}")
    (top / "b" / "0.png").write_bytes(png(6))
    with pytest.raises(InputError, match=r"b/0\.png' has 6 x 6 pixels, the others 4 x 4"):
        list(images)


@pytest.mark.parametrize("values", [np.full((4, 4), 0.5, np.float32), np.full((4, 4), 70_000, np.int32)])
def test_values_without_a_known_white(values, tmp_path):
    for kind in "ab":
        (tmp_path / kind).mkdir()
        Image.fromarray(values).save(tmp_path / kind / "0.tif")
    said = refusal(tmp_path)
    assert str(tmp_path / "a" / "0.tif") in said and "save it with 8 or 16 bits" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be"),
        ({"size": 2.5}, "size must be"),
        ({"crop": -3}, "crop must be"),
        ({"size": 224, "resize": 200}, "resize=200 must be at least size=224"),
        ({"channels": "bgr"}, "channels must be one of rgb, grey"),
        ({"interpolation": "cubic"}, "interpolation must be one of"),
    ],
)
def test_preparations_that_make_no_sense(options, message):
    with pytest.raises(InputError, match=message):
        Preparation(**options)


def test_resize_without_a_size_to_cut(tmp_path):
    top = tree(tmp_path, a=[png()], b=[png()])
    assert "resize=8 needs a size" in refusal(top, preparation=Preparation(resize=8))
    with pytest.raises(InputError, match="resize=8 needs a size"):
        data.load("digits", preparation=Preparation(resize=8))


def test_labels_out_of_range():
    with pytest.raises(InputError, match=r"labels of x must lie in \[0, 1\].*got \[0, 2\]"):
        data.ImageSet("x", torch.zeros(2, 1, 1, 1, dtype=torch.uint8), torch.tensor([0, 2]), ("a", "b"))


# what a file seems to be


def two_classes(top, size=(4, 4)):
    for value, name in enumerate("ab"):
        (top / name).mkdir()
        Image.new("L", size, 50 + value).save(top / name / "x.png")
    return f"folder:{top}"


def greys(loaded):
    return [int(v) for x, _ in loaded for v in (255 * x[:, 0, 0, 0]).round()]


def test_a_folder_linked_into_itself_is_read_once(tmp_path):
    name = two_classes(tmp_path)
    (tmp_path / "a" / "again").symlink_to(".")
    (tmp_path / "a" / "y.png").symlink_to("x.png")
    assert greys(data.load(name)) == [50, 51]


@pytest.mark.parametrize("target", ["../b", "../b/x.png", ".."])
def test_a_link_into_another_class_is_refused(tmp_path, target):
    name = two_classes(tmp_path)
    (tmp_path / "a" / "other.png").symlink_to(target)
    with pytest.raises(InputError, match="in another class: an image cannot have two labels"):
        data.load(name)


def test_links_to_images_kept_elsewhere_are_read(tmp_path):
    (tmp_path / "set").mkdir()
    name = two_classes(tmp_path / "set")
    Image.new("L", (4, 4), 99).save(tmp_path / "kept.png")
    (tmp_path / "set" / "a" / "y.png").symlink_to(tmp_path / "kept.png")
    assert greys(data.load(name)) == [50, 99, 51]


def test_what_is_left_out_is_counted(tmp_path):
    name = two_classes(tmp_path)
    os.mkfifo(tmp_path / "a" / "pipe.png")
    Image.new("L", (4, 4)).save(tmp_path / "a" / "x_mask.png")
    (tmp_path / "b" / "c.heic").write_bytes(b"")
    (tmp_path / "b" / "Thumbs.db").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"1 \.heic, 1 mask, 1 no file \(a pipe, a link to nothing\)"):
        assert greys(data.load(name)) == [50, 51]


def test_twelve_bits_are_white_where_they_are_said_to_be(tmp_path):
    name = two_classes(tmp_path)
    Image.fromarray(np.full((4, 4), 4095, np.uint16)).save(tmp_path / "a" / "x.png")
    with pytest.raises(InputError, match=r"4095 of 65,535.*bits=12 \(--read\.bits\), or 16"):
        list(data.load(name, preparation=Preparation(channels="grey")))
    for bits, value in ((12, 255), (16, 15)):
        assert greys(data.load(name, preparation=Preparation(channels="grey", bits=bits))) == [value, 51]


def test_a_file_of_several_pages_is_refused(tmp_path):
    name = two_classes(tmp_path)
    pages = [Image.new("L", (4, 4), v) for v in (1, 2)]
    pages[0].save(tmp_path / "a" / "y.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match=r"y\.tif' holds 2 pages"):
        list(data.load(name))


def test_postscript_is_no_image_whatever_its_name(tmp_path):
    name = two_classes(tmp_path)
    (tmp_path / "a" / "y.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\nshowpage\n")
    with pytest.raises(InputError, match="no known image format"):
        list(data.load(name, preparation=Preparation(size=4)))


def test_a_turned_bit_in_a_png_is_told_by_its_checksum(tmp_path):
    name = two_classes(tmp_path)
    file = tmp_path / "a" / "x.png"
    content = bytearray(file.read_bytes())
    content[content.index(b"IDAT") + 6] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"checksum of its chunk b'IDAT'|cannot be read as an image"):
        list(data.load(name))


def test_a_narrow_image_is_not_made_enormous(tmp_path):
    name = two_classes(tmp_path, (1, 60_000))
    with pytest.raises(InputError, match=r"x\.png': an image of 1 x 60000 pixels is too narrow"):
        list(data.load(name, preparation=Preparation(size=224)))


def arrays(**changes):
    x = np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8)
    return {"test_images": x, "test_labels": np.arange(4) % 2, **changes}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_turned_bit_in_an_npz_is_told(tmp_path, save):
    save(tmp_path / "set.npz", **arrays())
    content = bytearray((tmp_path / "set.npz").read_bytes())
    content[180] ^= 1
    (tmp_path / "set.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"test_images of .* cannot be read"):
        list(data.load(f"npz:{tmp_path}/set.npz"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_images": np.zeros((4, 16, 16, 4), np.uint8)}, r"reads as 4 channels: give grey .*:3"),
        ({"test_images": np.full((4, 8, 8), 200, np.uint16)}, r"200 of 65,535.*bits=8"),
        ({"test_labels": np.array([0, 1, 0, 10**9])}, "go up to 1000000000, and there are 4 of them"),
        ({"classes": np.array(["a", "a"])}, "names two classes 'a'"),
    ],
)
def test_arrays_that_are_not_what_they_seem(tmp_path, changes, message):
    np.savez(tmp_path / "set.npz", **arrays(**changes))
    with pytest.raises(InputError, match=message):
        data.load(f"npz:{tmp_path}/set.npz")


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("tag", [6, 2, 1, 0, 99])
def test_images_that_a_tag_turns_are_counted_and_read_as_stored(kind, tag, tmp_path):
    exif, image = Image.Exif(), Image.new("L", (4, 6), 9)
    exif[0x0112] = tag
    for name in "ab":
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / f"x.{kind}", exif=exif)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ((x, _),) = data.load(f"folder:{tmp_path}")
    followed = kind == "tif"  # by Pillow
    assert x.shape[2:] == ((4, 6) if followed and tag == 6 else (6, 4))
    said = [str(w.message) for w in caught]
    assert len(said) == (tag in (6, 2) and not followed)
    assert all(
        "2 images have a tag (EXIF) that turns them" in text and f"x.{kind}" in text for text in said
    )


def test_a_turned_tiff_is_turned_once_whatever_its_mode(tmp_path):
    values = np.arange(24, dtype=np.uint8).reshape(6, 4)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter clockwise
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.fromarray(values).save(tmp_path / name / "x.tif", exif=exif)
    ((x, _),) = data.load(f"folder:{tmp_path}")
    assert (255 * x[0, 0]).round().int().tolist() == np.rot90(values, -1).tolist()
