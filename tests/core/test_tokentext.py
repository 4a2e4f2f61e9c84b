from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tacit.core.tokentext import token_texts


def by_bytes(ids: list[int]) -> str:
    return bytes(ids).decode("utf-8", "replace")


def test_a_character_of_several_tokens_belongs_to_the_last() -> None:
    assert token_texts(list("a€b".encode()), by_bytes) == ["a", "", "", "€", "b"]


def test_bytes_that_never_become_a_character_are_shown_at_the_end() -> None:
    assert token_texts([97, 0xE2, 0x82], by_bytes) == ["a", "", "\ufffd"]


def test_a_space_that_belongs_to_the_joint_of_two_words_stays() -> None:
    """A decoder that strips the first space of a text, as those of the Llama family do."""
    words = [" one", " two", "", " three"]
    assert token_texts([0, 1, 2, 3], lambda ids: "".join(words[i] for i in ids).removeprefix(" ")) == ["one", " two", "", " three"]


def test_nothing_has_no_texts() -> None:
    assert token_texts([], by_bytes) == []


@given(st.text(max_size=12))
def test_joined_they_are_the_completion(text: str) -> None:
    ids = list(text.encode("utf-8", "surrogatepass").decode("utf-8", "ignore").encode())
    assert "".join(token_texts(ids, by_bytes)) == by_bytes(ids)
