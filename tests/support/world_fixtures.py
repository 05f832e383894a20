"""Fixtures for tests of whole sessions: `pytest_plugins = ["tests.support.world_fixtures"]`."""

from __future__ import annotations

import pytest

from tests.support.worlds import World, make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Byte-level tokenizer, Llama-3-like template, nothing that ends an answer early."""
    return make_world(tmp_path_factory.mktemp("world"), eos=())


@pytest.fixture(scope="session")
def spm_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The same with a SentencePiece-like tokenizer and a Llama-2-like template."""
    return make_world(tmp_path_factory.mktemp("spm"), "llama2", eos=("</s>",))
