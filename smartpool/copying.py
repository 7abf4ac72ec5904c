"""Objects that own memory or a device: there is one of each, so they are neither copied nor pickled."""

from __future__ import annotations

from typing import NoReturn

from smartpool.errors import UnsupportedError

__all__ = ["not_copied"]


def not_copied(owner: object, _protocol: object) -> NoReturn:
    """Stand for ``__reduce_ex__``, which `copy` and `pickle` ask, in a class of such objects.

    A copy would share what the original holds, and give it back a second time.
    """
    raise UnsupportedError(
        f"{owner!r} cannot be copied or pickled, because two would own the same memory; "
        "pass the object itself, and open another one in another process"
    )
