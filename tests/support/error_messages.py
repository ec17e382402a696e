"""Errors with their whole message."""

import pytest


def refuses(kind, message, function, *arguments, **options):
    """The call raises this kind of error with exactly this message."""
    with pytest.raises(kind) as caught:
        function(*arguments, **options)
    assert str(caught.value) == message
