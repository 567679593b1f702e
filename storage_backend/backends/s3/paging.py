"""Paging: what continues a listing, which must lead on: a service that never ends one would hold a caller for ever."""

from __future__ import annotations

from storage_backend.backends.s3.documents import unexpected

EMPTY_MOST = 1000  # pages in a row with nothing new; S3 gives some empty ones where many objects were deleted


class Trail:
    """The tokens of one listing. Any circle is noticed, in the memory of one token."""

    def __init__(self) -> None:
        self._kept: object = None
        self._count = 0
        self._next = 1
        self._empty = 0

    def follow(self, token: object, *, new: bool) -> None:
        """Go on with *token*, after a page that had something *new*.

        Raises:
            DocumentError: the listing leads nowhere.
        """
        self._empty = 0 if new else self._empty + 1
        if self._empty > EMPTY_MOST:
            raise unexpected("the end of the listing", f"{self._empty:,} pages in a row with nothing new")
        if token == self._kept:
            raise unexpected("a token that leads on", f"{token!r} again")
        # The token that is compared is replaced ever more seldom, so that it is at last one of the circle's, however long
        # that is ("An improved Monte Carlo factorization algorithm", R. P. Brent, 1980).
        self._count += 1
        if self._count == self._next:
            self._kept = token
            self._next *= 2
