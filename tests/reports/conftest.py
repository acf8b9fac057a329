import pytest
from synthetic import fill, fill_coordinates, fill_entropy, records


@pytest.fixture(scope="session")
def store_path(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("store") / "results.db", records())


@pytest.fixture(scope="session")
def entropy_path(tmp_path_factory):
    return fill_entropy(tmp_path_factory.mktemp("store") / "entropy.db", records())


@pytest.fixture(scope="session")
def coordinates_path(tmp_path_factory):
    return fill_coordinates(tmp_path_factory.mktemp("store") / "coordinates.db")
