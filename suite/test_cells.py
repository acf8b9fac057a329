"""The benchmark's cells as tests: `pytest suite`. A cell that fails is a failed test, a skipped one says why."""

import pytest

from suite.store import Record


def test_cell(bitfrontier_record: Record) -> None:
    """The cell runs, and what it measured is possible."""
    record = bitfrontier_record
    if record.status == "skipped":
        pytest.skip(str(record.reason))
    assert record.status == "ok", record.reason
    if record.bpw is None:  # then it is the cache that is quantized
        assert record.cache_bytes is not None and record.cache_bytes > 0
    else:
        assert record.bpw_entropy is not None and 0 < record.bpw_entropy <= record.bpw
    assert record.kl is not None and record.kl >= 0
