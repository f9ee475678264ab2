"""Keeps passwords, keys and signatures out of logs, records and error messages."""

import logging
import os
import re
import sys
import threading
import traceback
from typing import Any

_SURE = (  # names of secrets that are nothing else
    r"passw(?:or)?d|passphrase|pwd|(?:api|access|private|account|secret(?:[_-]?access)?|signing)[_-]?key(?:[_-]?id)?"
    r"|(?:auth|access|refresh|session|security|bearer|api|sas)[_-]?token|client[_-]?secret|shared[_-]?access[_-]?signature"
    r"|(?:aws[_-]?access[_-]?key|google[_-]?access)[_-]?id|jwt"
)
_NAME = rf"(?:\w+[_-])*?(?:{_SURE}|secret|token|credentials?|signature|sig|auth|authorization)"
_NOT_IN_PATH = r"(?<![\w/.%-])"  # a folder may be called token=7
_QUOTED = r"""(?P<quote>['"])(?:(?!(?P=quote)).)*(?P=quote)"""
_BARE = r"""[^\s'"&;,(){}\[\]<>]+"""
_IN_QUERY = (
    r"signature|sig|token|secret|passw|pwd|credential|api[_-]?key|access[_-]?key|account[_-]?key"
    r"|accessid|auth|jwt|session"
)

_SECRETS = tuple(
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        r"(://)[^/@:\s]*:(?!\d+(?:[/?#]|\s|$))[^@\s]*(?=@)",  # user:password@host, but not host:port/...@...
        r"(https?://)[^/@:\s?#]+(?=@)",  # token@host; elsewhere that is a user (sftp) or a container (abfs)
        rf"((?:[?&]|%3F|%26)(?:[^=&\s]*?(?:{_IN_QUERY})[^=&\s]*?|key|code)(?:=|%3D))(?:(?!%26)[^&\s'\"])+",
        r"(\bauthorization['\"]?\s*[:=]\s*['\"]?(?:[\w-]+ )?)[^\s'\",;(){}\[\]]+",
        r"(\bbearer )(?=\S*\d)[\w.~+/=-]{8,}",
        rf"({_NOT_IN_PATH}{_NAME}\s*=\s*)(?:{_QUOTED}|{_BARE})",
        rf"({_NOT_IN_PATH}['\"]{_NAME}['\"]\s*[:,]\s*b?){_QUOTED}",
        rf"({_NOT_IN_PATH}(?:\w+[_-])*?(?:{_SURE})\s*:\s*)(?:{_QUOTED}|{_BARE})",
        r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?=-----END|$)",
        r"((?<![a-zA-Z0-9]))(?-i:"  # what some services give out looks like nothing else
        r"A[KS]IA[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{40,}|glpat-[\w-]{20,}|hf_[A-Za-z0-9]{30,}"
        r"|AIza[\w-]{35}|ya29\.[\w-]{20,}|xox[abprs]-[\w-]{10,}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+)(?![a-zA-Z0-9])",
    )
)
_VARIABLE = re.compile(r"SECRET|TOKEN$|PASSWORD$|API_?KEY$|ACCESS_KEY$|ACCOUNT_KEY$|CONNECTION_STRING$")
_SHORTEST = 16  # characters of a variable's value that can be no ordinary word


def masked(text: str) -> str:
    """A text with every password, key and signature in it replaced by ***.

    They are known by their place in a URL or header, by the name before them, by their look, or because a variable of
    the environment with such a name (AWS_SECRET_ACCESS_KEY, WANDB_API_KEY, ...) has that value. Paths stay as they are.
    """
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and value[0] != "/" and _VARIABLE.search(name):
            text = text.replace(value, "***")
    for pattern in _SECRETS:
        text = pattern.sub(r"\1***", text)
    return text


def mask_output() -> None:
    """From now on, errors that nobody catches, and all log messages of this process, are masked.

    An OSError of a thread becomes one line: a full disk shows in the main thread too, as a sentence.
    """
    sys.excepthook = lambda kind, error, trace: _print(traceback.format_exception(kind, error, trace))
    threading.excepthook = _print_of_thread
    logging.setLogRecordFactory(_record)


def _print(lines: list[str]) -> None:
    print(masked("".join(lines)), end="", file=sys.stderr)


def _print_of_thread(given: threading.ExceptHookArgs) -> None:
    if isinstance(given.exc_value, OSError):
        _print([f"{given.exc_value}\n"])
    elif given.exc_type is not SystemExit:  # which is how a thread may end
        _print(traceback.format_exception(given.exc_type, given.exc_value, given.exc_traceback))


def _record(*arguments: Any, **options: Any) -> logging.LogRecord:
    record = logging.LogRecord(*arguments, **options)
    record.msg, record.args = masked(record.getMessage()), ()
    if record.exc_info:
        record.exc_text = masked("".join(traceback.format_exception(*record.exc_info)).rstrip())
    return record
