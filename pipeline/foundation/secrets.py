"""Keeps passwords, keys and signatures out of logs and records."""

import re

_SECRETS = (
    re.compile(r"(://)[^/@:\s]+:(?!\d+/)[^@\s]*(?=@)"),  # user:password@host, but not host:port/...@...
    re.compile(r"(?i)([?&][^=&\s]*(?:signature|sig|token|secret|password|credential)[^=&\s]*=)[^&\s'*]+"),
)


def masked(text: str) -> str:
    """A text with every password, key and signature inside its URLs replaced by ***."""
    for pattern in _SECRETS:
        text = pattern.sub(r"\1***", text)
    return text
