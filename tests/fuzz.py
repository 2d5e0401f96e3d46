"""What the tests of readers with random files share.

Each reader has 200 cases, the same in every run, or as many random ones as `FUZZ_CASES`
says:

    FUZZ_CASES=100000 python -m pytest tests/test_fuzz_*.py
"""

import os

import hypothesis
from hypothesis import strategies as st

CASES = int(os.environ.get("FUZZ_CASES", "200"))

fuzz = hypothesis.settings(
    max_examples=CASES,
    deadline=None,
    derandomize="FUZZ_CASES" not in os.environ,
    print_blob=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)

# For a reader with two tests.
half = hypothesis.settings(fuzz, max_examples=CASES // 2)

any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([10**400, "\x00", "\ud800", "../../x", 2**63]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner)
    ),
    max_leaves=6,
)


@st.composite
def damaged(draw, content):
    """A good file after one to three accidents."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        stop = min(start + draw(st.integers(0, 8)), len(content))
        content = content[:start] + draw(st.binary(max_size=8)) + content[stop:]
    return content


def files(content):
    """Files of any bytes, and damaged copies of a good one."""
    return st.binary(max_size=200) | damaged(content)


def assert_one_line(error, name):
    """That an error says in one line which file it is about."""
    assert str(name) in str(error)
    assert len(str(error).splitlines()) == 1, str(error)
    assert len(str(error)) < 1000


def read_or_refuse(read, path, content):
    """What `read` makes of a file with that content; None if it refuses the file, which
    it must do in one line."""
    path.write_bytes(content)
    try:
        return read(path)
    except ValueError as error:
        assert_one_line(error, path)
        return None
