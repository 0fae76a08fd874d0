"""Decoding, crops and statistics of images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch.utils.data import DataLoader, default_collate
from transformers import BitImageProcessorPil, CLIPImageProcessorPil, ViTImageProcessorPil

from goat_peft.errors import UserError
from goat_peft.tasks.images import (
    ImageRows,
    Preprocessing,
    centre_crop,
    decode,
    load_preprocessing,
    named_preprocessing,
    random_crop,
)

RED = (200, 30, 10)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The image as a file's bytes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth random colours."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def rows(images: list[bytes | None]) -> Dataset:
    """A data set of encoded images."""
    return Dataset.from_dict({"image": [None if image is None else {"bytes": image, "path": None} for image in images]})


@pytest.mark.parametrize("size", [(300, 200), (97, 411), (32, 32), (64, 1000)])
def test_scoring_transform_is_what_the_models_own_processor_does(size: tuple[int, int]) -> None:
    image = photo(*size)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56})
    expected = processor(image, return_tensors="pt")["pixel_values"]

    settings = Preprocessing(56, 64, tuple(processor.image_mean), tuple(processor.image_std))
    found = settings.normalize(centre_crop(image, settings)[None], torch.float32)

    assert found.shape == (1, 3, 56, 56)
    apart = (found - expected).abs() * torch.tensor(settings.std)[:, None, None] * 255
    assert apart.max() < 1.01 and apart.mean() < 0.2  # levels of 255: torch and Pillow round differently


def test_scoring_transform_by_hand() -> None:
    image = photo(120, 80)
    settings = named_preprocessing("imagenet", 40)

    resized = image.resize((60, 40), Image.Resampling.BICUBIC)
    by_hand = np.asarray(resized, np.float64)[:, 10:50]
    found = centre_crop(image, settings)
    assert np.abs(found.numpy() - by_hand).max() <= 1

    inputs = settings.normalize(found[None], torch.float32)[0].permute(1, 2, 0)
    expected = (found.numpy() / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(inputs, expected, atol=1e-5)


def test_random_crops_keep_the_share_of_the_area_that_they_are_asked_for() -> None:
    # Each pixel holds its own place, so that a crop tells which part of the image it shows.
    width, height = 240, 200
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    image = Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))
    shares, ratios = [], []
    for seed in range(200):
        crop = random_crop(image, 64, (0.5, 0.8), np.random.default_rng(seed)).double().numpy()
        across, down = np.ptp(crop[..., 0]) + 1, np.ptp(crop[..., 1]) + 1
        shares.append(across * down / (width * height))
        ratios.append(across / down)
    assert 0.47 < min(shares) < 0.55 and 0.74 < max(shares) < 0.82
    assert 0.73 < min(ratios) < 0.9 and 1.15 < max(ratios) < 1.36


def test_random_crop_of_an_image_too_long_for_any_draw_is_its_middle() -> None:
    crop = random_crop(photo(1000, 20), 32, (0.9, 1.0), np.random.default_rng(0))
    expected = photo(1000, 20).crop((486, 0, 513, 20)).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.abs(crop.numpy() - np.asarray(expected, np.float64)).max() <= 1


def test_random_crops_depend_on_seed_epoch_and_row_alone() -> None:
    data = ImageRows(
        rows([encoded(photo(40, 30, i)) for i in range(6)]),
        list(range(6)),
        named_preprocessing("clip", 24),
        "image",
        "train",
        (0.3, 1.0),
    )

    def pixels(workers: int) -> torch.Tensor:
        loader = DataLoader(data, batch_size=2, num_workers=workers, collate_fn=default_collate)
        return torch.cat([batch["pixel_values"] for batch in loader])

    first = pixels(0)
    assert first.shape == (6, 24, 24, 3) and first.dtype == torch.uint8
    torch.manual_seed(123)
    assert torch.equal(first, pixels(2))
    data.epoch = 1
    assert not torch.equal(first, pixels(0))
    data.epoch, data.seed = 0, 1
    assert not torch.equal(first, pixels(0))


def transparent_palette() -> bytes:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([*RED, 0, 255, 0])
    image.putpixel((0, 0), 1)
    return encoded(image, transparency=1)


CASES = {
    "grayscale": (encoded(Image.new("L", (8, 8), 77)), (77, 77, 77)),
    "one bit": (encoded(Image.new("1", (8, 8), 1)), (255, 255, 255)),
    "16 bits": (encoded(Image.fromarray(np.full((8, 8), 77 * 257, np.uint16))), (77, 77, 77)),
    "palette": (encoded(Image.new("RGB", (8, 8), RED).convert("P", palette=Image.Palette.ADAPTIVE)), RED),
    "transparent": (encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0))), (255, 255, 255)),
    "opaque": (encoded(Image.new("RGBA", (8, 8), (*RED, 255))), RED),
    "gray with alpha": (encoded(Image.new("LA", (8, 8), (77, 255))), (77, 77, 77)),
    "palette with a hole": (transparent_palette(), RED),
    "animation": (
        encoded(Image.new("RGB", (8, 8), RED), "GIF", save_all=True, append_images=[Image.new("RGB", (8, 8))]),
        RED,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_mode_becomes_rgb(case: str) -> None:
    data, colour = CASES[case]
    image = decode({"bytes": data, "path": None}, "row 0")
    assert image.mode == "RGB" and image.size == (8, 8)
    assert image.getpixel((5, 5)) == colour


def test_print_colours_become_rgb() -> None:
    data = encoded(Image.new("RGB", (16, 16), (255, 0, 0)).convert("CMYK"), "JPEG", quality=95)
    red, green, blue = decode({"bytes": data, "path": None}, "row 0").getpixel((8, 8))
    assert red > 230 and green < 40 and blue < 40


def test_a_hole_in_a_palette_is_white() -> None:
    assert decode({"bytes": transparent_palette(), "path": None}, "row 0").getpixel((0, 0)) == (255, 255, 255)


def test_a_turned_photo_stands_upright() -> None:
    image = Image.new("RGB", (20, 10), "black")
    image.paste((255, 255, 255), (0, 0, 10, 10))  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise, the left side on top
    upright = decode({"bytes": encoded(image, "PNG", exif=exif), "path": None}, "row 0")
    assert upright.size == (10, 20)
    assert upright.getpixel((5, 2)) == (255, 255, 255) and upright.getpixel((5, 17)) == (0, 0, 0)


BROKEN = {
    "cut short": encoded(photo(64, 64), "JPEG")[:-200],
    "no image": b"hello",
    "empty": b"",
    "floats": encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"),
    "missing": None,
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_image_is_named_in_one_line(case: str) -> None:
    data = ImageRows(rows([BROKEN[case]]), [0], named_preprocessing("clip", 8), "image", "validation")
    with pytest.raises(UserError, match="^task.image=image: row 0 of validation: .*leave the row out of the data$"):
        data[0]


def test_a_broken_image_is_named_in_one_line_by_workers_too() -> None:
    images = [encoded(photo(8, 8))] * 2 + [BROKEN["cut short"]]
    data = ImageRows(rows(images), [0] * 3, named_preprocessing("clip", 8), "image", "train")
    batches = iter(DataLoader(data, batch_size=3, num_workers=1))
    with pytest.raises(
        UserError, match="^task.image=image: row 2 of train: .*leave the row out of the data$"
    ) as caught:
        next(batches)
    assert "\n" not in str(caught.value)
    assert not list(batches)  # lets the worker end by itself


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"hello")
    data = Dataset.from_dict({"image": [str(tmp_path / "x.png")]})
    with pytest.raises(UserError, match="row 0 of train .*x.png"):
        ImageRows(data, [0], named_preprocessing("clip", 8), "image", "train")[0]


def test_a_column_of_other_things_holds_no_images() -> None:
    with pytest.raises(UserError, match="^task.image=count: the column holds no images"):
        ImageRows(Dataset.from_dict({"count": [1, 2]}), [0, 0], named_preprocessing("clip", 8), "count", "train")


@pytest.mark.parametrize(
    ("processor", "size", "expected"),
    [
        (CLIPImageProcessorPil(), None, (224, 224)),
        (CLIPImageProcessorPil(), 336, (336, 336)),
        (ViTImageProcessorPil(), None, (224, 224)),
        (BitImageProcessorPil(size={"shortest_edge": 256}), None, (224, 256)),  # as DINOv2 has it
        (BitImageProcessorPil(size={"shortest_edge": 256}), 448, (448, 512)),
    ],
)
def test_size_and_statistics_come_from_the_models_processor(
    processor: object, size: int | None, expected: tuple[int, int], tmp_path: Path
) -> None:
    processor.save_pretrained(tmp_path)
    found = load_preprocessing(str(tmp_path), {}, size)
    assert (found.size, found.resize) == expected
    assert found.mean == tuple(processor.image_mean) and found.std == tuple(processor.image_std)


def test_a_processor_that_does_not_normalize(tmp_path: Path) -> None:
    CLIPImageProcessorPil(do_normalize=False).save_pretrained(tmp_path)
    found = load_preprocessing(str(tmp_path), {}, None)
    assert (found.mean, found.std) == ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    "settings",
    [
        {"rescale_factor": 1 / 127.5},
        {"crop_size": {"height": 100, "width": 200}},
        {"size": {"longest_edge": 9}, "do_center_crop": False},
    ],
)
def test_a_processor_that_cannot_be_followed_says_so(settings: dict[str, object], tmp_path: Path) -> None:
    CLIPImageProcessorPil(**settings).save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match="^task.normalization=model: .*set task.normalization to imagenet, clip or half"
    ):
        load_preprocessing(str(tmp_path), {}, None)


def test_a_model_without_a_processor_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^task.normalization=model: .*no image processor .*and task.image_size$"):
        load_preprocessing(str(tmp_path), {}, None)
