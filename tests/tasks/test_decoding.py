"""Generated texts: the same for every batch size, ended where they should, drawn from the right distribution."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from goat_peft.tasks.decoding import Sampling, cut, draw, example_ids, generate_texts, prompt_ids

PROMPTS = [
    "question : is the film good ?",
    "the film",
    "a very very very dull story and so it was not fun",
    "love",
    "is this that ?",
    "the plot is awful , the actor was great !",
    "one",
]


@pytest.fixture
def llama(tiny_llama_dir: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A tiny model whose weights are large enough for its texts to depend on the whole prompt."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32)
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.normal_(std=0.5)
    return model.eval(), AutoTokenizer.from_pretrained(tiny_llama_dir)


def texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], **settings: object
) -> list[str]:
    found: dict[int, str] = {}
    settings = {"max_new_tokens": 12, "batch_size": 4, **settings}
    generate_texts(model, tokenizer, prompts, done=lambda i, t: found.update(zip(i, t, strict=True)), **settings)
    return [found[index] for index in sorted(found)]


def by_hand(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, steps: int) -> str:
    """Greedy decoding without cache, padding or batch."""
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + steps:
            ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
            if ids[-1] == tokenizer.eos_token_id:
                break
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_batches_give_what_one_prompt_alone_gives(llama: tuple, batch_size: int) -> None:
    expected = [by_hand(*llama, prompt, 12) for prompt in PROMPTS]
    assert len(set(expected)) > 4
    assert texts(*llama, PROMPTS, batch_size=batch_size) == expected


def test_the_model_s_own_generation_settings_do_not_count(llama: tuple) -> None:
    plain = texts(*llama, PROMPTS)
    model = llama[0]
    own = GenerationConfig(do_sample=True, temperature=3.0, repetition_penalty=5.0, max_length=3, eos_token_id=3)
    model.generation_config = own
    assert texts(*llama, PROMPTS) == plain
    assert model.generation_config is own


def test_tokens_that_the_model_names_as_ends_end_a_text(llama: tuple) -> None:
    model, tokenizer = llama
    longest = max(texts(*llama, PROMPTS), key=len).split()
    model.generation_config.eos_token_id = [3, tokenizer.convert_tokens_to_ids(longest[2])]
    assert all(longest[2] not in text.split() for text in texts(*llama, PROMPTS))


def test_stop_strings_end_texts_and_are_cut_off(llama: tuple) -> None:
    plain = texts(*llama, PROMPTS)
    stop = [plain[2].split()[3], plain[0].split()[1]]
    found = texts(*llama, PROMPTS, stop=stop)
    assert found == [cut(text, stop) for text in plain] and found != plain
    # Nothing is generated behind them: every row of this batch is done after a few tokens.
    calls = []
    llama[0].register_forward_hook(lambda *_: calls.append(1))
    texts(*llama, [PROMPTS[2]], stop=stop)
    assert len(calls) <= 4


def test_a_stop_string_over_several_tokens_is_found(llama: tuple) -> None:
    plain = texts(*llama, PROMPTS)[2]
    stop = " ".join(plain.split()[3:6])
    assert texts(*llama, PROMPTS, stop=[stop])[2] == plain[: plain.index(stop)]


def test_cut_takes_the_first_of_several() -> None:
    assert cut("ab c\nd", ["\n", " c"]) == "ab"
    assert cut("ab", []) == "ab"


def test_a_sampled_text_depends_on_the_seed_and_its_place_alone(llama: tuple) -> None:
    sampling = Sampling(seed=7)
    whole = texts(*llama, PROMPTS, sampling=sampling)
    assert texts(*llama, PROMPTS, sampling=sampling, batch_size=1) == whole
    assert texts(*llama, PROMPTS, sampling=sampling, indices=[5, 2]) == [whole[2], whole[5]]
    assert texts(*llama, PROMPTS, sampling=Sampling(seed=8)) != whole
    assert len(set(texts(*llama, ["the film"] * 6, sampling=sampling))) > 1


def test_sampling_draws_from_the_truncated_distribution(llama: tuple) -> None:
    model, tokenizer = llama
    sampling = Sampling(temperature=0.7, top_p=0.9)
    with torch.no_grad():
        logits = model(torch.tensor([prompt_ids(tokenizer, "the film")])).logits[0, -1]
    shares, order = (logits / 0.7).softmax(-1).sort(descending=True)
    nucleus = int((shares.cumsum(0) < 0.9).sum()) + 1
    expected = dict(zip(order[:nucleus].tolist(), (shares[:nucleus] / shares[:nucleus].sum()).tolist(), strict=True))
    assert 2 <= nucleus < len(shares)
    total = 2000
    drawn: list[str] = texts(
        model, tokenizer, ["the film"] * total, max_new_tokens=1, batch_size=500, sampling=sampling
    )
    counts = Counter(drawn)
    names = {tokenizer.decode([token], skip_special_tokens=True): share for token, share in expected.items()}
    assert set(counts) <= set(names)
    for name, share in names.items():
        assert counts[name] / total == pytest.approx(share, abs=4 * (share * (1 - share) / total) ** 0.5 + 1e-3)


def test_draws_of_a_prompt_do_not_depend_on_its_neighbours() -> None:
    alone, together = draw(Sampling(), [3], 5), draw(Sampling(), [0, 3], 5)
    assert torch.equal(alone[0], together[1]) and not torch.equal(together[0], together[1])


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_while_generating_and_modes_come_back(llama: tuple, training: bool) -> None:
    model = llama[0]
    expected = texts(*llama, PROMPTS)
    model.train(training)
    model.model.layers[0].train(not training)
    model.model.norm.register_forward_hook(lambda module, *_: seen.append(module.training))
    seen: list[bool] = []
    assert texts(*llama, PROMPTS) == expected
    assert seen and not any(seen)
    assert model.training is training and model.model.layers[0].training is not training


def test_the_prompt_is_tokenised_alike_for_training_and_for_scoring(tiny_llama_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    front, behind = example_ids(tokenizer, "the film is ", "good")
    assert front == prompt_ids(tokenizer, "the film is ")
    assert tokenizer.decode(behind) == "good"


def test_a_response_that_would_merge_with_the_prompt_is_kept_apart() -> None:
    """`a` + `b` is one token of this vocabulary; a prompt that ends in `a` must not lose it."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "<s>": 3}, [("a", "b")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    assert tokenizer("aab")["input_ids"] == [0, 2]
    assert example_ids(tokenizer, "aa", "b") == ([0, 0], [1])


def test_a_mark_in_front_is_kept_and_one_behind_is_not(tiny_bert_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_dir)
    tokenizer.eos_token, tokenizer.bos_token = "[SEP]", "[CLS]"
    assert tokenizer("the film")["input_ids"][-1] == tokenizer.eos_token_id
    ids = prompt_ids(tokenizer, "the film")
    assert ids[0] == tokenizer.bos_token_id and tokenizer.eos_token_id not in ids
    assert tokenizer.bos_token_id not in prompt_ids(tokenizer, "the film", add_special_tokens=False)
