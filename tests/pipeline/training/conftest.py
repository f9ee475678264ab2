"""What the tests of both trainings share."""

from pathlib import Path

import pytest

from tests.pipeline.training.rank_pair import RankPair


@pytest.fixture(scope="session")
def two_ranks():
    """Two ranks on CPUs; see RankPair.run."""
    pair = RankPair()
    yield pair
    pair.stop()


@pytest.fixture(scope="session")
def inputs(tmp_path_factory, digit_folder, exports, stores) -> Path:
    """A folder with images/, tokenizer/, store/ and held-out/."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "images").symlink_to(digit_folder)
    card = exports.tokenizer(str(folder / "tokenizer"))
    stores.build(str(folder / "store"), stores.plan(rows=21, **exports.identity(card)), rejected=(5,))
    stores.build(str(folder / "held-out"), stores.plan(rows=9, seed=1, **exports.identity(card)))
    return folder
