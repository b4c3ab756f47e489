import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilemamba.data.blobs import Texts

paths = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=30)


@given(st.lists(paths, max_size=20))
def test_texts_are_a_list(given_texts: list[str]) -> None:
    texts = Texts(given_texts)
    assert list(texts) == given_texts
    assert len(texts) == len(given_texts)
    assert list(pickle.loads(pickle.dumps(texts))) == given_texts
    if given_texts:
        assert texts[-1] == given_texts[-1]
    for beyond in (len(texts), -len(texts) - 1):
        with pytest.raises(IndexError):
            texts[beyond]


def test_texts_keep_names_that_are_no_unicode() -> None:
    name = b"caf\xe9.jpg".decode(errors="surrogateescape")
    assert list(Texts([name])) == [name]


def test_texts_take_little_memory() -> None:
    texts = Texts(f"/data/train/n{i % 1000:08}/n{i % 1000:08}_{i}.JPEG" for i in range(10_000))
    assert len(pickle.dumps(texts)) < 60 * 10_000
