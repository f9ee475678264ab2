"""Secrets are masked wherever they stand, and nothing else is."""

import io
import logging
import string
import subprocess
import sys
import threading
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdpm.jobs.cli import COMMANDS, main
from rdpm.pipeline.foundation import files, progress, secrets
from rdpm.pipeline.foundation.config import load_config
from rdpm.pipeline.foundation.secrets import masked
from rdpm.pipeline.tokenizing.plan import TokenizeConfig

EXAMPLES = settings(max_examples=150, deadline=None, derandomize=True, database=None)
SECRET = "je7MtGbClwBF+2Zp9Utk=h3yCo8nvbEXAMPLEKEY"
PLACES = [
    "https://{}@host/data",
    "https://user:{}@host/data",
    "s3://AKIAI44QH8DHBEXAMPLE:{}@bucket/x",
    "simplecache::s3://key:{}@bucket/x",
    "redis://:{}@host:6379/0",
    "http://host:9000/data?api_key={}&page=2",
    "https://host/data?access_key={}",
    "https://host/data?page=2&auth={}",
    "https://host/data?AWSAccessKeyId={}&Expires=1",
    "https://host/data?X-Amz-Credential={}&X-Amz-Date=1",
    "https://host/data?X-Amz-Security-Token={}",
    "https://host/data?X-Amz-Signature={}",
    "https://host/data?X-Goog-Signature={}",
    "https://account.blob.core.windows.net/c/x?sv=2024&sig={}",
    "https://host/data?key={}",
    "https://proxy/?url=https%3A%2F%2Fhost%3Ftoken%3D{}",
    "api_key={}",
    "access_key: {}",
    "AWS_SECRET_ACCESS_KEY={}",
    "WANDB_API_KEY='{}'",
    "auth={}",
    "token={} was refused",
    "Authorization: Bearer {}",
    "{{'Authorization': 'Basic {}'}}",
    "headers [('X-Amz-Security-Token', '{}')]",
    "AWS4-HMAC-SHA256 Credential=AKIA/2026/s3, SignedHeaders=host, Signature={}",
    "S3FileSystem(key='a', secret='{}')",
    '{{"key": "a", "secret": "{}", "anon": false}}',
    "DefaultEndpointsProtocol=https;AccountName=a;AccountKey={};EndpointSuffix=x",
    "the password is in password='{}'",
    "-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----",
]


@pytest.mark.parametrize("place", PLACES)
def test_a_secret_is_masked_in_every_place(place):
    text = f"rdpm: cannot open {place.format(SECRET)}"
    shown = masked(text)
    assert "***" in shown
    assert not any(SECRET[start : start + 6] in shown for start in range(len(SECRET) - 5))
    assert shown.startswith("rdpm: cannot open ")
    assert masked(shown) == shown


@pytest.mark.parametrize(
    "shape",
    [
        "AKIAI44QH8DHBEXAMPLE",
        "ghp_" + "a1" * 18,
        "hf_" + "aB3" * 11,
        "AIza" + "x" * 35,
        "eyJhbGciOiJ9.eyJzdWIiOiJ9.abc",
    ],
)
def test_what_services_give_out_is_masked_by_its_look(shape):
    assert masked(f"refused {shape}, sorry") == "refused ***, sorry"


def test_values_of_secret_variables_are_masked_wherever_they_stand(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
    monkeypatch.setenv("MINIO_PASSWORD", "minioadmin")  # too short to be told from a word
    text = "wandb 0123456789abcdef0123456789abcdef01234567 at /data/minioadmin"
    assert masked(text) == "wandb *** at /data/minioadmin"


NAMES = st.text(string.ascii_letters + string.digits + "._-+=,@ é", min_size=1, max_size=12).map(str.strip).filter(bool)
WORDS = st.sampled_from(
    ["token", "auth", "secret", "api_key", "password=1", "token=5", "auth=none", "key=7", "signature", "bearer"]
)
PATHS = st.lists(st.one_of(NAMES, WORDS), min_size=1, max_size=5).map("/".join)
ROOTS = ["/", "/data/", "./", "s3://bucket/", "gs://bucket/", "abfs://container@account.dfs.core.windows.net/"]
ROOTS += [
    "http://host/",
    "http://host:9000/",
    "https://host.example.org/",
    "sftp://user@host/",
    "file:///",
    "memory://a/",
]


@given(st.sampled_from(ROOTS), PATHS)
@EXAMPLES
def test_no_ordinary_path_or_url_is_changed(root, path):
    assert masked(f"{root}{path}") == f"{root}{path}"


@pytest.mark.parametrize(
    "text",
    [
        "tokens=/data/store out=/data/samples",
        "store /a/b has lost codes/c/0/0; run rdpm verify /a/b",
        "config key tokens is 5: input should be a valid string",
        "unknown config key token; did you mean tokens?",
        "3 of 5 tokens: done",
        "the keyboard: interrupted",
        "the signature of f(x) is unknown",
        "authors=me signal=9 design=blue keys=5 monkey=1",
        "bearer of bad news",
    ],
)
def test_no_ordinary_sentence_is_changed(text):
    assert masked(text) == text


@given(st.text())
@EXAMPLES
def test_any_text_can_be_masked_and_masking_twice_changes_nothing(text):
    assert masked(masked(text)) == masked(text)


@given(
    st.sampled_from([place for place in PLACES if "'" not in place and '"' not in place and "PRIVATE" not in place]),
    st.text(string.ascii_letters + string.digits + "+=-_", min_size=8, max_size=60),
)
@EXAMPLES
def test_any_secret_is_masked(place, secret):
    text = place.format(f"Zq{secret}9")
    assert f"Zq{secret}" not in masked(text)


@pytest.mark.parametrize("error", [ValueError, OSError, FileNotFoundError, PermissionError, files.StorageUnavailable])
@pytest.mark.parametrize("place", ["https://{}@host/x", "api_key={}", "http://h/?AWSAccessKeyId={}"])
def test_no_error_of_a_job_shows_a_secret(error, place, monkeypatch, capsys):
    text = place.format(SECRET)
    job = types.ModuleType("made")
    monkeypatch.setitem(sys.modules, "made", job)
    monkeypatch.setitem(COMMANDS, "made", ("made", ""))
    for given_error in (error(text), error(5, "it is refused", text), error(5, f"{text} is refused")):
        if error is ValueError:
            given_error = error(str(given_error))
        job.main = _raiser(given_error)
        assert main(["made"]) == 2
        shown = capsys.readouterr()
        assert "***" in shown.err
        assert SECRET not in shown.err + shown.out
        assert shown.err.count("\n") == 1


def _raiser(error):
    def job(_arguments):
        raise error

    return job


UNEXPECTED = """
import logging, sys, threading, types
from rdpm.jobs import cli
secret = "token=" + sys.argv[2]
job = types.ModuleType("job")
def main(_):
    logging.getLogger("a.library").warning("it says %s", secret)
    try:
        raise KeyError(secret)
    except KeyError:
        logging.getLogger("a.library").exception("a library shows")
    thread = threading.Thread(target=lambda: {}[secret])
    thread.start()
    thread.join()
    raise RuntimeError(f"unexpected {secret}")
job.main = main
sys.modules["job"] = job
cli.COMMANDS["made"] = ("job", "")
sys.exit(cli.main(["made"]))
"""


@pytest.mark.slow
def test_tracebacks_and_log_messages_show_no_secret(python, repository):
    command = [*python, "-c", UNEXPECTED, "made", SECRET]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("Traceback (most recent call last)") == 3
    for words in ("RuntimeError: unexpected token=***", "it says token=***", "a library shows", "KeyError: 'token=***"):
        assert words in done.stderr
    assert SECRET not in done.stdout + done.stderr


def test_lines_for_the_user_show_no_secret(capsys):
    progress.say(f"reading https://{SECRET}@host/x")
    with progress.ProgressLine(f"copy api_key={SECRET}", 1, "files") as line:
        line.update(1, {"from": f"https://host/?sig={SECRET}"})
    shown = capsys.readouterr().out
    assert SECRET not in shown
    assert shown.count("***") == 3


@pytest.mark.parametrize("value", [f"https://{SECRET}@host/x", f"https://host/x?api_key={SECRET}"])
def test_no_config_with_a_secret_is_read(value):
    """So no record, card, plan or log can hold one."""
    with pytest.raises(ValueError, match=r"images is 'https://.*\*\*\*.* contains credentials"):
        load_config(TokenizeConfig, "tokenize", None, [f"images={value}", "tokenizer=a", "out=b"])


def test_a_log_record_is_masked_only_when_it_is_made(monkeypatch):
    stream = io.StringIO()
    logger = logging.Logger("made")
    logger.addHandler(logging.StreamHandler(stream))
    before, hooks = logging.getLogRecordFactory(), (sys.excepthook, threading.excepthook)
    secrets.mask_output()
    try:
        logger.warning("%s and %d", "token=abc", 5)
    finally:
        logging.setLogRecordFactory(before)
        sys.excepthook, threading.excepthook = hooks
    assert stream.getvalue() == "token=*** and 5\n"
