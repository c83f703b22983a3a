"""The corpus, divided once for all tests of this folder."""

import pytest

from llama4_pipeline.data.corpus import Splits, read_corpus, split_corpus


@pytest.fixture(scope="session")
def splits() -> Splits:
    return split_corpus(read_corpus())
