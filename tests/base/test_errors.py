"""Errors: one tree, and exit codes that scripts may rely on."""

import pytest

from winnow.base.errors import ModelError, ResourceError, UsageError, WinnowError


@pytest.mark.parametrize(
    ("kind", "code"), [(WinnowError, 1), (UsageError, 2), (ModelError, 3), (ResourceError, 4)]
)
def test_each_kind_has_its_exit_code(kind, code):
    assert issubclass(kind, WinnowError)
    assert kind.exit_code == code
    assert str(kind("one line")) == "one line"


def test_a_usage_error_is_a_value_error():
    # so that callers who know Python's own convention catch it without knowing ours
    assert issubclass(UsageError, ValueError)
    assert not issubclass(ModelError, ValueError)
