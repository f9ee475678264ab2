"""The project's files on S3: a real server on this machine, with credentials from the environment only."""

import contextlib
import io
import subprocess

import fsspec
import numpy as np
import pytest
import yaml
from fsspec.implementations.memory import MemoryFileSystem

from rdpm.jobs.cli import main
from rdpm.pipeline.exports.weights import load_tokenizer
from rdpm.pipeline.foundation import files
from rdpm.pipeline.stores.reader import DamagedStore, open_store
from rdpm.pipeline.stores.verification import verify_store
from rdpm.pipeline.stores.writer import start_store
from rdpm.pipeline.stream.token_stream import StreamConfig, TokenStream

KEY, SECRET = "AKIAI44QH8DHBEXAMPLE", "je7MtGbClwBF/2Zp9Utk/h3yCo8nvbEXAMPLEKEY"


@pytest.mark.slow
def test_a_listing_shows_what_another_process_has_written_since_the_last_listing(s3, python, repository):
    files.write_bytes(f"{s3}/folder/1", b"1")
    assert files.list_names(f"{s3}/folder") == ["1"]
    imports = "from rdpm.pipeline.foundation import files"
    other = f"{imports}; files.write_bytes('{s3}/folder/2', b'22'); files.remove('{s3}/folder/1')"
    subprocess.run([*python, "-c", other], cwd=repository, check=True)
    assert files.list_names(f"{s3}/folder") == ["2"]
    assert files.list_files(s3) == [("folder/2", 2)]
    assert [files.exists(f"{s3}/folder/{n}") for n in (1, 2)] == [False, True]


def test_put_if_absent_never_replaces_and_leaves_no_probe(s3):
    files.require_create(f"{s3}/store")
    assert files.list_files(s3) == []
    assert [files.create_bytes(f"{s3}/once", data) for data in (b"first", b"second")] == [True, False]
    assert files.read_bytes(f"{s3}/once") == b"first"


class Forgetful(MemoryFileSystem):
    """A file system that ignores put-if-absent and replaces the object, like some servers that speak S3."""

    protocol = "forgetful"

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        super().pipe_file(path, value, **kwargs)


def test_no_store_is_started_where_put_if_absent_is_ignored(stores):
    fsspec.register_implementation("forgetful", Forgetful, clobber=True)
    with pytest.raises(ValueError, match=r"forgetful://a/store cannot create an object only if it is absent"):
        start_store("forgetful://a/store", stores.plan())
    assert files.list_files("forgetful://a") == []


@pytest.mark.slow
def test_streams_and_exports_are_read_from_s3(s3, stores, exports, tmp_path):
    stores.build(str(tmp_path / "local"))
    stores.build(f"{s3}/remote")
    batches = []
    for number, url in enumerate((str(tmp_path / "local"), f"{s3}/remote")):
        config = StreamConfig(cache=str(tmp_path / f"cache{number}"))
        stream = TokenStream([open_store(url, "tokens")], seed=3, latents=False, config=config)
        batches.append(stream.batch(np.arange(len(stream))))
    for name in ("positions", "codes", "seeds", "labels"):
        assert np.array_equal(*(getattr(batch, name) for batch in batches))
    card = exports.tokenizer(f"{s3}/tokenizer")
    assert load_tokenizer(f"{s3}/tokenizer")[1] == card


@pytest.mark.slow
def test_damage_on_s3_is_found_and_never_read(s3, stores):
    store = stores.build(f"{s3}/store")
    lost, changed = store.manifest.plan.objects(1)["codes"], store.manifest.plan.objects(2)["label"]
    files.remove(files.join(store.url, lost))
    files.write_bytes(files.join(store.url, changed), b"x")
    assert [finding.name for finding in verify_store(store).findings] == [lost, changed]
    for name, key in (("codes", lost), ("label", changed)):
        with pytest.raises(DamagedStore, match=key):
            store.read_all(name)


@pytest.mark.parametrize(
    "url",
    [
        f"s3://{KEY}:{SECRET}@bucket/store",
        f"simplecache::s3://{KEY}:{SECRET}@bucket/store",
        f"https://host/store?X-Amz-Credential={KEY}&X-Amz-Signature={SECRET}",
    ],
)
@pytest.mark.parametrize("command", ["verify", "tokenize"])
def test_credentials_in_a_url_are_refused_and_never_shown(url, command, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    given = [url] if command == "verify" else ["images=images", f"tokenizer={url}", f"out={url}"]
    assert main([command, *given]) == 2
    assert main([command, *given, "surplus"]) == 2
    shown = "".join(capfd.readouterr())
    assert "***" in shown
    assert KEY not in shown
    assert SECRET not in shown
    assert list(tmp_path.iterdir()) == []


def test_missing_credentials_are_reported_in_one_sentence(s3, monkeypatch, capfd):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fsspec.filesystem("s3").clear_instance_cache()
    with contextlib.redirect_stderr(io.StringIO()) as shown:
        assert main(["verify", f"{s3}/store"]) == 2
    assert "credentials" in shown.getvalue()
    assert "Traceback" not in "".join(capfd.readouterr())
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.mark.long
def test_of_two_jobs_on_one_store_one_waits_and_neither_writes_credentials(
    anywhere, s3_server, tmp_path, exports, digit_folder, python, repository, tree
):
    exports.tokenizer(str(tmp_path / "tokenizer"))
    resources = {"cpus": 4, "object_store_mb": 128, "actors": 1, "actor_cpus": 0.5}
    config = {"images": digit_folder, "tokenizer": str(tmp_path / "tokenizer"), "shard_rows": 4, "chunk_rows": 2}
    (tmp_path / "store.yaml").write_text(yaml.safe_dump({"job": "tokenize", **config, "resources": resources}))
    command = [*python, "-m", "rdpm", "tokenize", "--wait", str(tmp_path / "store.yaml"), f"out={anywhere}/store"]
    jobs = [
        subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    said = [job.communicate(timeout=300)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    store = open_store(f"{anywhere}/store", "tokens")
    assert verify_store(store).findings == ()
    assert len(store) == len(set(store.index()["key"].to_pylist())) == 24
    assert all(store.id[:12] in text or "already there" in text for text in said)
    written = tree(anywhere)
    assert {"store.record.json", "store/manifest.json", "store/plan.json", "store/commits/00005.json"} <= set(written)
    for secret in (s3_server["AWS_ACCESS_KEY_ID"], s3_server["AWS_SECRET_ACCESS_KEY"]):
        assert not any(secret in text for text in said)
        assert not [name for name, data in written.items() if secret.encode() in data]
