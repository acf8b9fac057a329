import os
from pathlib import Path
from types import SimpleNamespace

import divergence
import pytest
import tiny

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    """Every test and every process it starts keeps its statistics here, and leaves nothing on the machine."""
    before = os.environ.get("BITFRONTIER_CACHE")
    path = tmp_path_factory.mktemp("cache")
    os.environ["BITFRONTIER_CACHE"] = str(path)
    yield path
    os.environ.pop("BITFRONTIER_CACHE")
    if before is not None:
        os.environ["BITFRONTIER_CACHE"] = before


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """The directory of a small LLaMA with a tokenizer."""
    path = tiny.save(tiny.model_of("llama"), tmp_path_factory.mktemp("llama"))
    tiny.save_tokenizer(path)
    return path


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """Token files for `llama`, as the arguments of `suite.run`."""
    path = tmp_path_factory.mktemp("tokens")
    calibration = tiny.save_tokens(path / "calibration.npy", 20, tiny.CONTEXT, 1)
    evaluation = tiny.save_tokens(path / "evaluation.npy", 12, tiny.CONTEXT, 2)
    return {"calibration": str(calibration), "evaluation": str(evaluation)}


@pytest.fixture(scope="session")
def stories():
    """A model trained by others on real text, with its facts."""
    path = DATA / "stories260k"
    if not path.is_dir():
        pytest.skip("the stories260k checkpoint is not beside this checkout")
    tokens = {"calibration": str(path / "calibration_tokens.npy"), "evaluation": str(path / "evaluation_tokens.npy")}
    return SimpleNamespace(path=path, inputs=tokens)


@pytest.fixture(scope="session")
def reference():
    """The reference model, with a way to the divergence of a recipe on its evaluation tokens."""
    return divergence.open_reference()
