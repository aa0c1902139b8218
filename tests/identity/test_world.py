"""The worlds of the identity check."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.identity.check import worlds
from tests.identity.config import IdentityConfig
from tests.identity.models import BUNDLED, LAYOUTS, make_model
from tests.identity.world import World, run_world


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("identity")


def test_the_default_worlds_cover_every_layout_cache_and_number_of_threads(folder: Path) -> None:
    """500 requests to the bundled model and 25 to each layout; each model with both caches, on 1 and on 2 threads."""
    made = worlds(IdentityConfig(), folder)
    by_model = {path: [world for world in made if world.model == path] for path in {world.model for world in made}}
    assert len(by_model) == 1 + len(LAYOUTS)
    for path, its_worlds in by_model.items():
        assert sum(world.num_requests for world in its_worlds) == (500 if path == BUNDLED else 25)
        assert {world.kv_cache_type for world in its_worlds} == {"f16", "int8"}
        assert {world.threads for world in its_worlds} == {1, 2}
    assert len({(world.kv_cache_type, world.threads) for world in made}) == 4
    assert len({world.seed for world in made}) == len(made)


def test_a_world_runs_the_same_way_again(folder: Path) -> None:
    """Its seed decides every request, step and count, however long the steps really take."""
    world = World(make_model("F16", folder), "f16", threads=2, seed=11, num_requests=12)
    first = run_world(world)
    assert first == run_world(world)
    assert first.error is None
    assert first != run_world(World(world.model, "f16", threads=2, seed=12, num_requests=12))
