"""What several files of tests use."""

import pytest


@pytest.fixture
def recorded(monkeypatch):
    """A function that spies on another: `recorded(module, "name")` is the list of what it is called with from then on.

    It is called all the same; `pick` says what of its arguments is kept.
    """

    def record(owner, name, pick=lambda *given, **named: given):
        calls, function = [], getattr(owner, name)

        def spy(*given, **named):
            calls.append(pick(*given, **named))
            return function(*given, **named)

        monkeypatch.setattr(owner, name, spy)
        return calls

    return record
