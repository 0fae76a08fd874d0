"""Image classification: whole runs, label columns, folders of images, continuing, other image sizes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from goat_peft import recipes, records
from goat_peft.errors import UserError
from goat_peft.recipes.schema import METHODS
from goat_peft.tasks import Kept, Scoring, bind
from goat_peft.training import evaluate, train
from goat_peft.training.loading import load_base, load_processor

NAMES = ["blue", "green", "red"]
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 99}


def picture(kind: int, draw: np.random.Generator) -> Image.Image:
    """Noise with more of one colour: class 0 is red, 1 green, 2 blue."""
    pixels = draw.integers(0, 160, (20 + draw.integers(20), 24, 3))
    pixels[..., kind] += 90
    return Image.fromarray(pixels.astype(np.uint8))


def write(rows: int, path: Path, names: list[str] | None = None, seed: int = 0) -> Path:
    """Write pictures of the three colours in turn as parquet; without `names` labels are plain ids (0 is red)."""
    draw = np.random.default_rng(seed)
    images, labels = [], []
    for index in range(rows):
        file = io.BytesIO()
        picture(index % 3, draw).save(file, "PNG")
        images.append({"bytes": file.getvalue(), "path": None})
        labels.append(index % 3 if names is None else names.index(NAMES[2 - index % 3]))
    features = Features({"picture": ImageFeature(), "colour": ClassLabel(names=names) if names else Value("int64")})
    Dataset.from_dict({"picture": images, "colour": labels}, features=features).to_parquet(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.parquet and test.parquet, whose class ids mean the same colours in another order."""
    folder = tmp_path_factory.mktemp("colours")
    write(60, folder / "train.parquet", NAMES)
    write(24, folder / "test.parquet", ["red", "green", "blue"], seed=1)
    return folder


@pytest.fixture(scope="module")
def clip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP of both towers, as they are published, with its image processor."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(vision_config=SHAPE, text_config=TEXT, projection_dim=16)).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vit_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ViT that has been trained for five other classes already."""
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(**SHAPE, num_labels=5)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dino_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random DINOv2 without an image processor."""
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(**SHAPE)).save_pretrained(folder)
    return folder


def checked(model: Path, data: Path, **changes: Any) -> recipes.Recipe:
    """A checked recipe that trains on the colours for a few steps, with dotted changes."""
    recipe: dict[str, Any] = {
        "name": "tiny-images",
        "model": {"name": str(model), "dtype": "float32"},
        "task": {
            "type": "image_classification",
            "data": {
                "train": {"path": str(data / "train.parquet")},
                "test": {"path": str(data / "test.parquet")},
                "cut": {"validation": 6},
            },
            "image": "picture",
            "label": "colour",
        },
        "method": {"name": "goat"},
        "training": {"learning_rate": 0.01, "max_steps": 12, "batch_size": 12, "logging_steps": 4, "save_steps": 0},
        "evaluation": {"batch_size": 10, "every_steps": 0},
    }
    for key, value in changes.items():
        recipes.apply_override(recipe, f"{key.replace('__', '.')}={json.dumps(value)}")
    return recipes.check(recipe)


def task_of(folder: Path, **options: Any) -> Any:
    """The task of a checked recipe over the colours."""
    changes = {f"task__{name}": value for name, value in options.items()}
    return bind(checked(folder, folder, task__normalization="half", task__image_size=32, **changes).task)


@pytest.mark.parametrize(
    ("model", "method", "changes"),
    [
        ("clip_dir", "goat", {"method__lora_dropout": 0.05}),
        ("vit_dir", "lora", {"training__max_steps": None, "training__epochs": 4, "evaluation__every_steps": None}),
        ("dino_dir", "full", {"task__normalization": "imagenet", "task__image_size": 32}),
    ],
)
def test_a_run_learns_and_scores_the_same_once_loaded(
    model: str, method: str, changes: dict, data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place = request.getfixturevalue(model)
    recipe = checked(
        place, data, method={"name": method}, evaluation__untrained=True, output_dir=str(tmp_path / "run"), **changes
    )
    run = train(recipe)
    rows = run.result["train_info"]["metrics"]
    assert rows[0]["untrained test accuracy"] < 0.6
    # The ids of the test file mean other colours than those of the training file: the names must have decided.
    assert rows[-1]["test accuracy"] > 0.9 and rows[-1]["test macro_accuracy"] > 0.9
    if method == "lora":
        assert [row["valid accuracy"] for row in rows if "valid accuracy" in row][-1] > 0.6

    lines = (run.path / records.PREDICTIONS).read_text().splitlines()
    predictions = [json.loads(line) for line in lines]
    assert [row["index"] for row in predictions] == list(range(24))
    assert [row["label"] for row in predictions[:3]] == ["red", "green", "blue"]
    assert all(row["correct"] == (row["label"] == row["prediction"]) for row in predictions)
    assert all(1 / 3 < row["confidence"] <= 1 for row in predictions)

    again = evaluate(run.path, output=tmp_path / "again")
    assert (again.path / records.PREDICTIONS).read_text().splitlines() == lines


def test_of_clip_only_the_image_tower_is_loaded_and_adapted(clip_dir: Path, data: Path) -> None:
    recipe = checked(clip_dir, data)
    task = bind(recipe.task)
    model = load_base(recipe.model, task, load_processor(recipe.model, task))
    published = CLIPModel.from_pretrained(clip_dir).vision_model.state_dict()
    for name, value in model.vision_model.state_dict().items():
        torch.testing.assert_close(value, published[name])
    assert model.classifier.out_features == 3 and model.config.id2label == dict(enumerate(NAMES))

    adapted = METHODS["goat"].build(model, recipe.method, task.peft_type)
    linears = {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}
    names = adapted.base_model.targeted_module_names
    assert len(names) == 2 * len(linears) and {name.rpartition(".")[2] for name in names} == linears
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    head = {name for name in trained if "goat" not in name}
    assert {name.rpartition(".")[2] for name in head} == {"weight", "bias"} and all("classifier" in n for n in head)


def test_a_head_for_other_classes_is_left_behind(vit_dir: Path, data: Path) -> None:
    recipe = checked(vit_dir, data)
    task = bind(recipe.task)
    model = load_base(recipe.model, task, load_processor(recipe.model, task))
    before = ViTForImageClassification.from_pretrained(vit_dir)
    assert model.classifier.weight.shape == (3, 32)
    torch.testing.assert_close(model.vit.state_dict(), before.vit.state_dict())


@pytest.mark.parametrize("model", ["clip_dir", "vit_dir", "dino_dir"])
def test_another_image_size_interpolates_the_position_embeddings(
    model: str, data: Path, request: pytest.FixtureRequest
) -> None:
    settings = checked(request.getfixturevalue(model), data, task__normalization="half", task__image_size=48)
    task = bind(settings.task)
    processor = load_processor(settings.model, task)
    base = load_base(settings.model, task, processor).eval()
    rows = task.load().test
    found = task.evaluate(base, rows, processor, Scoring(24)).predictions

    images = task.prepare(rows, processor, "test")
    pixels = processor.normalize(torch.stack([images[i]["pixel_values"] for i in range(24)]), torch.float32)
    assert pixels.shape == (24, 3, 48, 48)
    told = {} if model == "dino_dir" else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        expected = base(pixels, **told).logits.softmax(-1).max(-1).values
    np.testing.assert_allclose([row["confidence"] for row in found], expected, rtol=1e-5)


def test_an_evaluation_that_was_cut_off_continues(vit_dir: Path, data: Path, tmp_path: Path) -> None:
    recipe = checked(vit_dir, data)
    task = bind(recipe.task)
    processor = load_processor(recipe.model, task)
    rows = task.load().test
    base = load_base(recipe.model, task, processor).eval()
    whole = task.evaluate(base, rows, processor, Scoring(5))

    def stop(done: int, total: int) -> None:
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        task.evaluate(base, rows, processor, Scoring(5, stop, Kept(tmp_path / "kept", "key")))
    seen: list[tuple[int, int]] = []
    continued = task.evaluate(
        base, rows, processor, Scoring(5, lambda *step: seen.append(step), Kept(tmp_path / "kept", "key"))
    )
    assert seen[-1] == (14, 14)
    assert continued.metrics == whole.metrics
    assert [row["prediction"] for row in continued.predictions] == [row["prediction"] for row in whole.predictions]


def test_each_epoch_draws_other_crops_and_a_later_start_draws_the_same(
    vit_dir: Path, data: Path, tmp_path: Path
) -> None:
    def crops(resume: bool) -> dict[int, torch.Tensor]:
        """Sum of the pixels that each step of two epochs trains on."""
        recipe = checked(vit_dir, data, task__crop_scale=[0.2, 1.0])
        task = bind(recipe.task)
        processor = load_processor(recipe.model, task)
        model = load_base(recipe.model, task, processor)
        arguments = {
            "output_dir": str(tmp_path),
            "num_train_epochs": 2,
            "per_device_train_batch_size": 27,
            "save_steps": 3,  # in the middle of the second epoch
            "seed": 7,
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
        }
        trainer = task.trainer(
            model, arguments, task.prepare(task.load().train, processor, "train"), None, processor, []
        )
        found: dict[int, torch.Tensor] = {}
        model.register_forward_pre_hook(
            lambda module, args, inputs: found.update(
                {trainer.state.global_step: inputs["pixel_values"].sum((1, 2, 3))}
            ),
            with_kwargs=True,
        )
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3") if resume else None)
        return found

    whole = crops(resume=False)
    assert sorted(whole) == [0, 1, 2, 3]
    first, second = torch.cat([whole[0], whole[1]]), torch.cat([whole[2], whole[3]])
    assert len(set(first.tolist()) & set(second.tolist())) < len(first) / 4
    resumed = crops(resume=True)
    assert sorted(resumed) == [3]
    assert torch.equal(resumed[3], whole[3])


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures with plain ids: 0 is red."""
    folder = tmp_path_factory.mktemp("ids")
    for name in ("train", "test"):
        write(9, folder / f"{name}.parquet")
    return folder


@pytest.mark.parametrize(
    ("options", "names", "first"),
    [
        ({"num_classes": 3}, [0, 1, 2], [0, 1, 2]),
        ({"labels": [2, 1, 0]}, [2, 1, 0], [2, 1, 0]),
        ({"labels": ["red", "green", "blue"]}, ["red", "green", "blue"], [0, 1, 2]),
    ],
)
def test_classes_of_a_column_of_ids(options: dict, names: list, first: list[int], ids: Path) -> None:
    task = task_of(ids, data__cut=None, **options)
    splits = task.load()
    assert task.names == names
    assert task.prepare(splits.train, task.load_processor("", {}), "train").labels[:3] == first


def test_labels_put_named_classes_in_another_order(data: Path) -> None:
    task = task_of(data, labels=["green", "red", "blue"])
    splits = task.load()
    labels = task.prepare(splits.test, task.load_processor("", {}), "test").labels
    assert labels[:3] == [1, 0, 2]  # red, green, blue


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "task.label=colour: the column does not name its classes; set task.labels .* task.num_classes .*0, 1, 2"),
        ({"num_classes": 2}, "task.label=colour: row 2 of train has 2, which is none of the 2 classes"),
        ({"label": "color"}, "task.label=color: .*did you mean colour"),
        ({"image": "image", "num_classes": 3}, "task.image=image: the data has no such column"),
    ],
)
def test_columns_that_do_not_fit(options: dict, message: str, ids: Path) -> None:
    task = task_of(ids, data__cut=None, **options)
    with pytest.raises(UserError, match=f"^{message}"):
        task.prepare(task.load().train, task.load_processor("", {}), "train")


def test_the_number_of_classes_is_checked(data: Path) -> None:
    with pytest.raises(UserError, match="^task.num_classes=10: the column colour has 3 classes"):
        task_of(data, num_classes=10).load()


def test_a_class_that_training_does_not_know(data: Path) -> None:
    task = task_of(data, labels=["red", "green"])
    with pytest.raises(UserError, match="^task.label=colour: row 2 of test has 'blue', .*2 classes .red, green."):
        task.prepare(task.load().test, task.load_processor("", {}), "test")


def test_a_folder_of_images_by_class(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for kind, name in enumerate(("red", "green", "blue")):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(2):
                picture(kind, draw).save(tmp_path / split / name / f"{index}.png")
    source = {"dataset": "nobody/nothing"}
    data = {"train": source, "test": source | {"split": "test"}, "folder": str(tmp_path)}
    task = task_of(tmp_path, data=data, image="image", label="label")
    splits = task.load()
    assert task.names == NAMES
    images = task.prepare(splits.test, task.load_processor("", {}), "test")
    assert len(images) == 6
    for index in range(6):  # the strongest channel tells the colour
        item = images[index]
        strongest = int(item["pixel_values"].float().mean((0, 1)).argmax())
        assert NAMES[item["labels"]] == ("red", "green", "blue")[strongest]


def test_classes_come_from_the_training_rows_even_when_only_the_test_is_read(data: Path) -> None:
    task = task_of(data)
    splits = task.load("test")
    assert splits.train is None and task.names == NAMES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalization": "imagenet"}, "image_size must be given"),
        ({"labels": ["a", "b", "a"]}, "holds a value twice"),
        ({"labels": ["a", "b"], "num_classes": 3}, "labels names 2 classes"),
        ({"crop_scale": [1.0, 0.9]}, "two rising shares"),
        ({"normalization": "imagnet", "image_size": 32}, "normalization"),
    ],
)
def test_options_that_do_not_agree(options: dict, message: str, data: Path) -> None:
    with pytest.raises(UserError, match=message):
        checked(data, data, **{f"task__{name}": value for name, value in options.items()})


def test_a_model_without_a_processor_says_what_to_set(dino_dir: Path, data: Path) -> None:
    recipe = checked(dino_dir, data)
    with pytest.raises(UserError, match="^task.normalization=model: .*set task.normalization to imagenet"):
        load_processor(recipe.model, bind(recipe.task))


def test_a_model_of_text_says_so(tiny_bert_dir: Path, data: Path) -> None:
    recipe = checked(tiny_bert_dir, data, task__normalization="half", task__image_size=32)
    task = bind(recipe.task)
    with pytest.raises(UserError, match="^model.name=.*no model could be loaded"):
        load_base(recipe.model, task, load_processor(recipe.model, task))


def test_real_images_in_the_hubs_parquet_layout() -> None:
    folder = Path(__file__).parents[3] / "shared" / "data" / "image" / "cifar10"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    data = {
        "train": {"path": str(folder / "train.parquet"), "rows": 10000},
        "test": {"path": str(folder / "test.parquet")},
    }
    task = task_of(folder, data=data, image="image", label="label", num_classes=10)
    splits = task.load()
    assert task.names[0] == "airplane" and len(splits.test) == 2000
    item = task.prepare(splits.test, task.load_processor("", {}), "test")[0]
    assert item["pixel_values"].shape == (32, 32, 3)
    with Image.open(io.BytesIO(splits.test.with_format("arrow")[0]["image"][0]["bytes"].as_py())) as image:
        np.testing.assert_array_equal(
            item["pixel_values"], np.asarray(image.convert("RGB"))
        )  # 32 pixels stay as they are
