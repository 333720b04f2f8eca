"""Random calls and spoiled files: an exit code and a sentence, never a traceback. benchmarks/fuzz.py runs it long."""

import pytest
from fuzz_cases import READERS, call, calls, read_spoiled, samples, spoiled
from hypothesis import HealthCheck, given, settings

QUICK = settings(derandomize=True, database=None, max_examples=40, suppress_health_check=list(HealthCheck))


@settings(QUICK, max_examples=60)
@given(words=calls())
def test_any_call_keeps_the_contract(words):
    assert call(words) in (0, 2, 3)


@pytest.mark.parametrize("kind", sorted(READERS))
def test_any_file_is_read_or_refused(kind):
    if kind not in samples():
        pytest.skip("PyTorch is not installed")
    assert read_spoiled(kind, samples()[kind]) == "read"

    @QUICK
    @given(content=spoiled(kind))
    def check(content):
        read_spoiled(kind, content)

    check()
