"""adapter_config.json with anything in it: the adapter as it was saved, or one clear error; never something else, never code."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from bases import fresh_base, logits
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from goat_peft import GoatConfig, records
from goat_peft.errors import UserError
from goat_peft.training.loading import load_adapter

CONFIG = "adapter_config.json"
EXAMPLES = {"fast": 60, "slow": 1000}

# What people and programs write into such a file by mistake or to do harm.
AWKWARD = [
    None, True, False, 0, -1, 1, 2, 3, 8, 10**9, 10**30, 0.5, 1e300, float("nan"), float("inf"), "", "goat", "GOAT", "LORA", "lora", "all-linear",
    "../../etc/passwd", "/dev/zero", "os.system", "__import__('os').system('touch executed')", "q_proj", ".*", "(", "*", "\x00", "é" * 50, [], [None], [[]],
    ["q_proj"], ["q_proj", 3], ["../x"], {}, {"a": 1}, {"parent_library": "os", "base_model_class": "system"},
]  # fmt: skip
LETTERS = 'GOATgoat_./\\\x00\n"{}[]0123é\u2028'
JSON = st.recursive(
    st.sampled_from(AWKWARD) | st.integers() | st.floats() | st.text(LETTERS, max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(LETTERS, max_size=6), inner, max_size=3),
    max_leaves=6,
)


def mutations(fields: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """The file's bytes after one change: a field replaced, renamed, removed or added; bytes flipped, cut, put in; or other JSON altogether."""
    names, text = st.sampled_from(sorted(fields)), json.dumps(fields, indent=2, sort_keys=True).encode()

    def as_bytes(value: Any) -> bytes:
        return json.dumps(value).encode()

    def flipped(bits: list[int]) -> bytes:
        content = bytearray(text)
        for bit in bits:
            content[bit // 8] ^= 1 << bit % 8
        return bytes(content)

    replaced = st.tuples(names, JSON).map(lambda pair: as_bytes(fields | {pair[0]: pair[1]}))
    swapped = st.tuples(names, names).map(lambda pair: as_bytes(fields | {pair[0]: fields[pair[1]]}))
    removed = names.map(lambda name: as_bytes({key: value for key, value in fields.items() if key != name}))
    renamed = st.tuples(names, st.text(LETTERS, max_size=10)).map(
        lambda pair: as_bytes({(pair[1] if key == pair[0] else key): value for key, value in fields.items()})
    )
    added = st.tuples(st.text(LETTERS, max_size=10), JSON).map(lambda pair: as_bytes({pair[0]: pair[1]} | fields))
    flips = st.lists(st.integers(0, 8 * len(text) - 1), min_size=1, max_size=3).map(flipped)
    cut = st.integers(0, len(text) - 1).map(lambda size: text[:size])
    put = st.tuples(st.integers(0, len(text)), st.binary(min_size=1, max_size=4)).map(
        lambda pair: text[: pair[0]] + pair[1] + text[pair[0] :]
    )
    return replaced | replaced | swapped | removed | renamed | added | flips | flips | cut | put | JSON.map(as_bytes)


def check(folder: Path, content: bytes, expected: Tensor) -> str:
    """Load the adapter with this config; return what came of it."""
    (folder / CONFIG).write_bytes(content)
    before = {path.name for path in folder.iterdir()}
    try:
        model = load_adapter(fresh_base(), folder)
    except UserError as error:
        assert str(error).startswith("adapter=") and "\n" not in str(error)
        outcome = "refused"
    else:
        # The one thing that a file without digests can still be: settings that another file could have held.
        found, config = logits(model), model.peft_config["default"]
        if not torch.equal(found, expected):
            assert b'"settings_digest"' not in content or not json.loads(content)["settings_digest"]
            assert isinstance(config, GoatConfig) and torch.isfinite(found).all()
        outcome = "loaded as saved" if torch.equal(found, expected) else "loaded with other settings"
    assert {path.name for path in folder.iterdir()} == before and not Path("executed").exists()
    return outcome


def fuzz(folder: Path, expected: Tensor, examples: int) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    fields = json.loads((folder / CONFIG).read_text())

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(mutations(fields))
    def run(content: bytes) -> None:
        outcomes[check(folder, content, expected)] += 1

    run()
    return outcomes


@pytest.mark.filterwarnings("ignore")
def test_a_config_with_one_change_loads_as_saved_or_is_refused(copied: Path, saved: tuple[Path, Tensor]) -> None:
    outcomes = fuzz(copied, saved[1], EXAMPLES["fast"])
    assert set(outcomes) == {"refused", "loaded as saved"} and sum(outcomes.values()) >= EXAMPLES["fast"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_thousand_configs(copied: Path, saved: tuple[Path, Tensor], tmp_path: Path) -> None:
    """The counts end in `fuzzed.json`, which `results/hostile.py` keeps."""
    outcomes = fuzz(copied, saved[1], EXAMPLES["slow"])
    records.write_json(tmp_path / "fuzzed.json", {"cases": sum(outcomes.values()), "outcomes": dict(outcomes)})
    assert set(outcomes) == {"refused", "loaded as saved"} and sum(outcomes.values()) >= EXAMPLES["slow"]


@pytest.mark.slow
def test_every_single_flipped_bit_of_a_config(copied: Path, saved: tuple[Path, Tensor], tmp_path: Path) -> None:
    """Each bit of the file in turn, at the level of the config; those that it lets through say what was saved."""
    original = (copied / CONFIG).read_bytes()
    whole = GoatConfig.from_pretrained(copied)
    outcomes: Counter[str] = Counter()
    for bit in range(8 * len(original)):
        content = bytearray(original)
        content[bit // 8] ^= 1 << bit % 8
        outcomes[_config_of(copied, bytes(content), whole)] += 1
    records.write_json(tmp_path / "flipped.json", {"cases": 8 * len(original), "outcomes": dict(outcomes)})
    assert set(outcomes) <= {"refused", "the same settings"}


def _config_of(folder: Path, content: bytes, whole: GoatConfig) -> str:
    (folder / CONFIG).write_bytes(content)
    try:
        config = GoatConfig.from_pretrained(folder)
    except (ValueError, TypeError, KeyError, AttributeError):
        return "refused"
    if type(config) is not GoatConfig:
        return "refused"  # another method's, which has no place for these tensors
    # All but those that decide nothing about a saved adapter, which anybody may edit.
    free = {"base_model_name_or_path", "revision", "auto_mapping", "peft_version", "inference_mode", "task_type"}
    free |= {"lora_dropout", "router_aux_loss_coef", "router_aux_loss_reduction", "fan_in_fan_out"}
    left, right = ({k: v for k, v in c.to_dict().items() if k not in free} for c in (config, whole))
    return "the same settings" if left == right else "other settings"


@pytest.mark.slow
def test_every_byte_of_the_weights_flipped(copied: Path, saved: tuple[Path, Tensor], tmp_path: Path) -> None:
    """One bit of each 97th byte of the whole file, header and tensors: refused, or the very same logits."""
    file = copied / "adapter_model.safetensors"
    original = file.read_bytes()
    outcomes: Counter[str] = Counter()
    for place in range(0, len(original), 97):
        content = bytearray(original)
        content[place] ^= 1 << place % 8
        file.write_bytes(content)
        try:
            same = torch.equal(logits(load_adapter(fresh_base(), copied)), saved[1])
            outcomes["loaded as saved" if same else "loaded otherwise"] += 1
        except UserError:
            outcomes["refused"] += 1
    records.write_json(tmp_path / "weights.json", {"cases": sum(outcomes.values()), "outcomes": dict(outcomes)})
    assert set(outcomes) <= {"refused", "loaded as saved"}


def test_a_thing_that_is_no_config(copied: Path, saved: tuple[Path, Tensor]) -> None:
    deep = b"[" * 20000 + b"]" * 20000
    for content in (
        b"",
        b"null",
        b"[]",
        b'"GOAT"',
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b"{}",
        deep,
        b'{"peft_type": "GOAT"}',
    ):
        assert check(copied, content, saved[1]) == "refused", content[:20]
    shutil.rmtree(copied)
    with pytest.raises(UserError):
        load_adapter(fresh_base(), copied)
