"""Images into pixels: decoding, the crops of training and scoring, and the numbers a model was pretrained on.

Pillow decodes, torch resizes: its antialiased bicubic of bytes is within one level of 255 of Pillow's, at two to five
times the speed, and it is what the models' own processors call where torchvision is installed, which is not needed here.
Workers hand over bytes (uint8), a quarter of float32; `Preprocessing.normalize` turns them into floats on the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoImageProcessor
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from ..errors import UserError, first_line

# Mean and standard deviation of red, green and blue, for pixels in [0, 1].
STATISTICS = {
    "imagenet": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    "clip": (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    "half": (IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD),
}
REMEDY = "set task.normalization to imagenet, clip or half, and task.image_size"

_RATIOS = (3 / 4, 4 / 3)  # of a random crop's width to its height
_TRIES = 10


class ImageError(UserError):
    """A broken image.

    A loader's worker raises it anew with a traceback as its text, whose last line is the message; only that is kept.
    """

    def __init__(self, message: str) -> None:
        last = message.strip().splitlines()[-1]
        super().__init__(last.removeprefix(f"{type(self).__module__}.{type(self).__qualname__}: "))


@dataclass(frozen=True)
class Preprocessing:
    """What a model expects of an image.

    Attributes:
        size: side of the square it sees, in pixels.
        resize: length of the shorter side before the centre crop, at least `size`.
        mean, std: per channel, of pixels in [0, 1].
    """

    size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalize(self, pixels: Tensor, dtype: torch.dtype) -> Tensor:
        """Turn bytes (batch, height, width, 3) into model inputs (batch, 3, height, width) on the same device.

        `(x / 255 - mean) / std`, computed in float32.
        """
        mean, std = (_on_device(values, pixels.device) for values in (self.mean, self.std))
        return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2).to(dtype)


@cache
def _on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    """The values as a tensor, copied to the device once: a copy from the host could be captured in no CUDA graph."""
    return torch.tensor(values, device=device)


def named_preprocessing(name: str, size: int) -> Preprocessing:
    """The statistics known by `name` (a key of `STATISTICS`), for squares of `size`."""
    mean, std = STATISTICS[name]
    return Preprocessing(size, size, tuple(mean), tuple(std))


def load_preprocessing(path: str, settings: dict[str, Any], size: int | None) -> Preprocessing:
    """Read what a model expects from the processor that comes with it; `size` overrides its own and keeps its margin.

    Raises:
        UserError: the model has no processor, or one whose images are not squares of normalised red, green and blue.
    """
    try:
        processor = AutoImageProcessor.from_pretrained(path, backend="pil", **settings)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"task.normalization=model: {path} has no image processor that can be loaded ({first_line(error)}); "
            f"{REMEDY}"
        ) from error
    resize = _side(processor.size)
    crop = _side(processor.crop_size) if getattr(processor, "do_center_crop", False) else resize
    if not resize or not crop:
        raise UserError(
            f"task.normalization=model: the processor of {path} makes no squares (size {processor.size}); {REMEDY}"
        )
    usual = {"do_flip_channel_order": False, "rescale_offset": False, "do_rescale": True, "rescale_factor": 1 / 255}
    for name, value in usual.items():
        given = getattr(processor, name, None)
        if given is not None and abs(given - value) > 1e-6:
            raise UserError(
                f"task.normalization=model: the processor of {path} has {name}={given}, which is not supported; {REMEDY}"
            )
    size = size or crop
    normalizes = getattr(processor, "do_normalize", False)
    return Preprocessing(
        size=size,
        resize=max(size, round(size * resize / crop)),
        mean=tuple(processor.image_mean) if normalizes else (0.0, 0.0, 0.0),
        std=tuple(processor.image_std) if normalizes else (1.0, 1.0, 1.0),
    )


def decode(value: dict[str, Any] | None, where: str) -> Image.Image:
    """Decode `{bytes, path}` into an upright RGB image; `where` names it in errors.

    Raises:
        ImageError: there is no image, or it is cut short, broken, too large for Pillow, or of floats.
    """
    if value is None:
        raise ImageError(f"{where}: there is no image; leave the row out of the data")
    name = f" ({value['path']})" if value.get("path") else ""
    try:
        return to_rgb(datasets.Image().decode_example(value))  # which turns it as its EXIF data say
    except Exception as error:  # Pillow's readers raise OSError, ValueError, SyntaxError, struct.error, zlib.error, ...
        raise ImageError(
            f"{where}{name}: the image cannot be read ({first_line(error)}); mend it or leave the row out of the data"
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB: 16 bits are scaled to 8, what is transparent lies on white."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"values from {values.min()} to {values.max()} are more than 16 bits hold")
        return Image.fromarray(np.rint(values / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range; store 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def centre_crop(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """Resize the shorter side to `resize` and cut the square of `size` in the middle; returns (size, size, 3) uint8."""
    short, size, resize = min(image.size), preprocessing.size, preprocessing.resize
    pixels = _resized(image, resize * image.width // short, resize * image.height // short)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


def random_crop(image: Image.Image, size: int, scale: tuple[float, float], draw: np.random.Generator) -> Tensor:
    """Cut a random part and resize it to a square (torchvision's RandomResizedCrop); returns (size, size, 3) uint8.

    The part's area is a share in `scale` of the image's, its width over its height lies in [3/4, 4/3]. Where ten draws do
    not fit, it is the largest part in the middle whose ratio lies there.
    """
    width, height = image.size
    for _ in range(_TRIES):
        area, ratio = width * height * draw.uniform(*scale), np.exp(draw.uniform(*np.log(_RATIOS)))
        across, down = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            left, top = draw.integers(width - across, endpoint=True), draw.integers(height - down, endpoint=True)
            break
    else:
        ratio = min(max(width / height, _RATIOS[0]), _RATIOS[1])
        across, down = min(width, round(height * ratio)), min(height, round(width / ratio))
        left, top = (width - across) // 2, (height - down) // 2
    return _resized(image.crop((int(left), int(top), int(left) + across, int(top) + down)), size, size)


class ImageRows(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows as bytes of pixels and class ids, decoded when asked for.

    A crop depends on `seed`, `epoch` and the row alone, so that the number of workers, a resumed run and the order of rows
    change nothing.

    Args:
        rows: has the column `column` of images: encoded bytes, or paths.
        labels: class id of each row.
        preprocessing: what the model expects.
        column: name of the image column.
        split: named in errors.
        scale: shares of the area that random crops keep; None for the centre crop.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        labels: list[int],
        preprocessing: Preprocessing,
        column: str,
        split: str,
        scale: tuple[float, float] | None = None,
    ) -> None:
        try:
            self.rows = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        except (TypeError, ValueError, NotImplementedError) as error:  # pyarrow's errors are among these
            raise UserError(
                f"task.image={column}: the column holds no images ({first_line(error)}); name one of encoded images or of "
                "paths"
            ) from error
        self.labels, self.preprocessing = labels, preprocessing
        self.column, self.split, self.scale = column, split, scale
        self.seed = self.epoch = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return `pixel_values` (size, size, 3) uint8 and `labels`."""
        image = decode(self.rows[index][self.column], f"task.image={self.column}: row {index} of {self.split}")
        if self.scale is None:
            pixels = centre_crop(image, self.preprocessing)
        else:
            draw = np.random.default_rng((self.seed, self.epoch, index))
            pixels = random_crop(image, self.preprocessing.size, self.scale, draw)
        return {"pixel_values": pixels, "labels": self.labels[index]}


def _resized(image: Image.Image, width: int, height: int) -> Tensor:
    """Resize, bicubic and antialiased; returns (height, width, 3) uint8."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    return F.interpolate(pixels, (height, width), mode="bicubic", antialias=True)[0].permute(1, 2, 0)


def _side(size: Any) -> int | None:
    """The side of the square that a processor's size describes, or None when it describes none."""
    given = {key: value for key, value in dict(size or {}).items() if value}
    if set(given) == {"shortest_edge"}:
        return given["shortest_edge"]
    if set(given) == {"height", "width"} and given["height"] == given["width"]:
        return given["height"]
    return None
