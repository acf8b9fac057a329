import pytest
from synthetic import fill, records


@pytest.fixture(scope="session")
def store_path(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("store") / "results.db", records())
