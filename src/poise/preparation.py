"""What is done to an image file before a model sees it; no torch here, so that flags are read fast."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeAlias

from poise.checks import InputError, check_choice, check_count

Channels: TypeAlias = Literal["rgb", "grey"]
Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos"]
INTERPOLATIONS: tuple[Interpolation, ...] = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How images are brought to one shape, and which are left out.

    The order: 8 bits a channel, colours, the window `crop`, the short side (or with `squash` both sides)
    to `resize`, the centre `size` x `size`. What is left at its default is as the data set has it.

    Args:
        size: Height and width of the images: resized by the short side, then cut from the centre.
        resize: Length of the short side before that cut; `size` by default.
        squash: Bring both sides to that length, whatever the image's shape, and not the short one.
        crop: Side of the centre window that is cut first, with black where an image is smaller.
        channels: Colours, rgb or grey; as in the files by default, and rgb where they differ.
        interpolation: How to resize: bilinear (the default), bicubic or lanczos, with anti-aliasing, or
            nearest.
        bits: How many bits of 16- or 32-bit values are used, 8 to 16: white is 2**bits - 1. 16 by
            default, which is refused where all of an image would come out dark.
        drop: Classes left out.
        allow_empty: Keep classes without images, in their place in the order of the labels.
        skip_damaged: Leave out files that cannot be read; all are decoded once to find them.
        verify: Read every image file for the fingerprint, also those that have the size and times which
            they had when they were read before.

    Raises:
        InputError: a side that is not a whole number of pixels, or a cut larger than its image.
    """

    size: int | None = None
    resize: int | None = None
    squash: bool | None = None
    crop: int | None = None
    channels: Channels | None = None
    interpolation: Interpolation | None = None
    bits: int | None = None
    drop: tuple[str, ...] = ()
    allow_empty: bool = False
    skip_damaged: bool = False
    verify: bool = False

    def __post_init__(self) -> None:
        for name in ("size", "resize", "crop"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), 1, 8192)
        if self.resize is not None and self.size is not None and self.resize < self.size:
            raise InputError(
                f"resize={self.resize} must be at least size={self.size}, which is cut from it"
            )
        if self.bits is not None:
            check_count("bits", self.bits, 8, 16)
        if self.channels is not None:
            check_choice("channels", self.channels, ("rgb", "grey"))
        if self.interpolation is not None:
            check_choice("interpolation", self.interpolation, INTERPOLATIONS)

    def over(self, own: Preparation) -> Preparation:
        """A data set's own preparation, with what differs from the defaults here in its stead.

        >>> Preparation(size=32).over(Preparation(size=224, channels="rgb"))
        Preparation(size=32, resize=None, squash=None, crop=None, channels='rgb', interpolation=None, \
bits=None, drop=(), allow_empty=False, skip_damaged=False, verify=False)
        """
        mine = {f.name: getattr(self, f.name) for f in fields(self)}
        chosen = {f.name: mine[f.name] for f in fields(self) if mine[f.name] != f.default}
        if "size" in chosen:
            chosen.setdefault("resize", None)  # the data set's belongs to its own size
        return replace(own, **chosen)

    @property
    def touches_pixels(self) -> bool:
        """Whether an image of any size and colours would not be left as it is."""
        return any((self.size, self.resize, self.crop, self.channels))

    @property
    def recipe(self) -> str:
        """All that pixels depend on, as text: a part of a data set's fingerprint."""
        crop, side, squash, size, way = self.window
        bits = "" if self.bits is None else f" {self.bits} bits"
        return f"{crop} {side}{' squashed' * squash} {size} {self.channels} {way}{bits}"

    @property
    def window(self) -> tuple[int | None, int | None, bool, int | None, str]:
        """What is seen of an image: crop, resize, squash, size and interpolation, as they are in force."""
        way = self.interpolation or "bilinear"
        return self.crop, self.resize or self.size, bool(self.squash), self.size, way

    @property
    def said(self) -> str:
        """The same in words, after "the images".

        >>> Preparation(size=224, resize=256, interpolation="bicubic").said
        'are resized to a short side of 256 (bicubic) and cut to 224×224'
        """
        crop, side, squash, size, way = self.window
        first = [f"are cut to the {crop}×{crop} pixels in the centre"] if crop else []
        if size is None:
            return first[0] if first else "keep the size of their files"
        kept = f"are squashed to {side}×{side}" if squash else f"are resized to a short side of {side}"
        return " and ".join([*first, f"{kept} ({way})", f"cut to {size}×{size}"])

    @property
    def pixels(self) -> Preparation:
        """What is done to an image, without which images there are."""
        return Preparation(**{name: getattr(self, name) for name in PIXELS})

    @property
    def told(self) -> dict[str, Any]:
        """What differs from the defaults, for JSON; `Preparation(**told)` gives it back."""
        values = {f.name: (getattr(self, f.name), f.default) for f in fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, (value, default) in values.items()
            if value != default and name != "verify"  # the images are the same
        }


PIXELS = ("size", "resize", "squash", "crop", "channels", "interpolation", "bits")
AS_IT_IS = Preparation()
