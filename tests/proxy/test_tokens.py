"""Texts to ids: the fast package gives what the thorough one gives, and what it does not know is left to the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from placement_api.proxy.tokens import MOST_CHARS, Tokens
from route_front import WORDS, Sample

from placement.errors import InputError

TEXTS = st.lists(st.sampled_from([*WORDS, " ", "\n", "ä", "漢", "\U0001f600", "x", "\ud800", "<|a|>"]), max_size=30)


@pytest.fixture(scope="module", params=["fastokens", "tokenizers"])
def tokens(request: pytest.FixtureRequest, sample: Sample) -> Tokens:
    """One that reads with this package."""
    pytest.importorskip(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("placement_api.proxy.tokens.PACKAGES", (request.param,))
        one = Tokens(sample.tokenizer)
    assert one.package == request.param
    return one


@given(words=TEXTS)
def test_ids_are_those_of_the_model(tokens: Tokens, sample: Sample, words: list[str]) -> None:
    """Halves of letters are read as the sign for what cannot be read."""
    from tokenizers import Tokenizer

    text = "".join(words)
    plain = text.encode(errors="replace").decode()
    expected = Tokenizer.from_file(str(sample.tokenizer)).encode(plain, add_special_tokens=False).ids
    assert tokens.ids(text).tolist() == expected


def test_no_more_than_the_first_million_letters_is_read(tokens: Tokens) -> None:
    text = "alpha " * 40
    long = text * (MOST_CHARS // len(text) + 2)
    assert tokens.ids(long).tolist() == tokens.ids(long[:MOST_CHARS]).tolist()


def test_a_tokenizer_of_another_kind_is_left_to_the_other_package(tmp_path: Path) -> None:
    """WordPiece, which fastokens does not know."""
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {"[UNK]": 0, **{word: at + 1 for at, word in enumerate(WORDS)}}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    one = Tokens(tmp_path / "tokenizer.json")
    assert (one.package, one.ids("beta other").tolist()) == ("tokenizers", [2, 0])


@pytest.mark.parametrize("content", ["", "{}", "[" * 100_000, json.dumps({"model": {"type": "BPE"}}), "\x00"])
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=r"is no tokenizer: .*; give the model's tokenizer\.json"):
        Tokens(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot read"):
        Tokens(tmp_path / "tokenizer.json")
