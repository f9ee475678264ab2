"""Requests to storage servers: asked again while the trouble may pass, then given up with one error.

What may pass: throttling (429, 503), trouble inside the server (500, 502, 504), conflicts (409), timeouts, broken
connections and cut replies. A request that fails so for `PATIENCE` seconds after its first failure raises
`StorageUnavailable`. The waits between tries are random and grow to `_LONGEST` seconds, so that many clients do not
come back at the same moment. Each try has a deadline of its own.
"""

import errno
import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.foundation.secrets import masked

PATIENCE = 300.0
_VARIABLE = "RDPM_STORAGE_PATIENCE"  # seconds, instead of PATIENCE
_LONGEST = 20.0
_QUIET = 10.0  # seconds before a line says that a request waits, and between two such lines
_PASSING_STATUS = {408, 409, 425, 429, 500, 502, 503, 504}
_PASSING_CODES = {"RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch", "SlowDown"}
_PASSING_ERRORS = {  # of packages that are imported only when they are needed
    "ConnectionError",  # botocore, requests
    "ClientConnectionError",  # aiohttp
    "ClientPayloadError",
    "HTTPClientError",  # botocore: timeouts, resets, no connection
    "IncompleteReadError",
    "ResponseParserError",
    "IncompleteRead",  # http.client
    "TransportError",  # httpx, google.auth
}
_said = -_QUIET  # when the last such line was printed
_saying = threading.Lock()

_Result = TypeVar("_Result")


class StorageUnavailable(OSError):
    """A storage server did not do what it was asked, however often it was asked again."""


def persist(url: str, request: Callable[[], _Result]) -> _Result:
    """The result of a request about an object, which is made again as long as its failure may pass.

    The request must be one that may be made twice. Raises StorageUnavailable when patience ends, and the error of the
    last try when it cannot pass; what a client raises besides OSError becomes an OSError.
    """
    patience = _Patience(url)
    try:
        return Retrying(
            retry=retry_if_exception(is_passing),
            wait=wait_random_exponential(multiplier=0.1, max=_LONGEST),
            stop=patience.is_over,
            before_sleep=patience.say,
            reraise=True,
        )(request)
    except Exception as error:
        if is_passing(error):
            raise StorageUnavailable(
                f"{masked(url)}: the storage did not answer properly for {patience.seconds:g} s, at last with "
                f"{_in_words(error)}; run the command again when it is well"
            ) from error
        raise _named(error, masked(url)) from error.__cause__


def _named(error: Exception, url: str) -> Exception:
    """The error, or one that says which object it is about."""
    if isinstance(error, FileNotFoundError) and error.errno is None:
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url)
    if isinstance(error, OSError) and error.errno is not None:
        error.filename = error.filename or url
    elif type(error) in (OSError, PermissionError):
        return type(error)(f"{url}: {error}")
    elif "BotoCoreError" in _names(error):  # no credentials, an endpoint that is no URL
        return OSError(f"{url}: {masked(str(error))}; check the endpoint and the credentials")
    return error


class _Patience:
    """How long a request has been failing."""

    def __init__(self, url: str) -> None:
        self.url, self._first = url, 0.0
        try:
            self.seconds = float(os.environ.get(_VARIABLE, PATIENCE))
        except ValueError:
            raise ValueError(f"{_VARIABLE} is {os.environ[_VARIABLE]!r}; give seconds") from None

    def is_over(self, state: RetryCallState) -> bool:
        self._first = self._first or time.monotonic()
        return time.monotonic() + state.upcoming_sleep - self._first > self.seconds

    def say(self, state: RetryCallState) -> None:
        """Tell who runs the job, if this takes long; one line for all requests of this process that wait."""
        global _said
        now = time.monotonic()
        with _saying:
            if now - self._first < _QUIET or now - _said < _QUIET:
                return
            _said = now
        assert state.outcome is not None
        error = state.outcome.exception()
        assert error is not None
        say(
            f"waiting for {masked(self.url)}: {_in_words(error)}; tried {state.attempt_number} times in "
            f"{now - self._first:.0f} s, at most {self.seconds:g} s"
        )


def is_passing(error: BaseException) -> bool:
    """Whether a request that failed so may succeed when it is made again."""
    for one in (error, error.__cause__):
        if isinstance(one, StorageUnavailable):
            return False
        if isinstance(one, TimeoutError | ConnectionError) or _names(one) & _PASSING_ERRORS:
            return True
    status, code = reply_of(error)
    return status in _PASSING_STATUS or code in _PASSING_CODES


def _names(error: BaseException | None) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def reply_of(error: BaseException) -> tuple[int, str]:
    """HTTP status and error code of the server's reply behind an error; 0 and "" without one."""
    for one in (error, error.__cause__):
        reply = getattr(one, "response", None)
        if isinstance(reply, dict):  # botocore
            status = reply.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return int(status), str(reply.get("Error", {}).get("Code", ""))
        if isinstance(status := getattr(reply, "status_code", None), int):  # huggingface_hub
            return status, ""
        for name in ("status", "code", "status_code"):  # aiohttp, gcsfs, azure
            status = getattr(one, name, None)
            if isinstance(status, int):
                return status, ""
    return 0, ""


def _in_words(error: BaseException) -> str:
    status, code = reply_of(error)
    reply = " ".join([str(status), "" if code.isdecimal() else code]) if status else type(error).__name__
    text = getattr(error, "strerror", None) or str(error)
    return masked(" ".join(f"{reply} ({text})".split()))
