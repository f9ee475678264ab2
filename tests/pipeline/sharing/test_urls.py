"""Everything that a user names may lie on a web server or on the hub: images, stores, exports to start from."""

import shutil
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from rdpm.jobs import inspect_store, verify
from rdpm.pipeline.foundation import files
from rdpm.pipeline.images.listing import list_images
from rdpm.pipeline.stores.reader import open_store
from rdpm.pipeline.training.generator.inputs import open_stores
from tests.pipeline.sharing.hub_server import HubServer
from tests.pipeline.training.trainings import config


@pytest.fixture
def laid(tmp_path, digit_folder, exports, stores) -> Path:
    """A folder with images/, images.tar, tokenizer/, generator/ and store/."""
    folder = tmp_path / "laid"
    shutil.copytree(digit_folder, folder / "images")
    with tarfile.open(folder / "images.tar", "w") as tar:
        tar.add(digit_folder, ".")
    card = exports.tokenizer(str(folder / "tokenizer"))
    exports.generator(str(folder / "generator"), card)
    stores.build(str(folder / "store"), stores.plan(**exports.identity(card)), rejected=(5,))
    return folder


@pytest.fixture(params=["http", "hf", "s3"])
def url(request, laid) -> str:
    """What `laid` holds, on a web server, on the hub and in a bucket."""
    if request.param == "http":
        return request.getfixturevalue("served")(laid)
    if request.param == "s3":
        bucket = request.getfixturevalue("s3")
        fsspec.filesystem("s3", use_listings_cache=False).put(f"{laid}/", bucket, recursive=True)
        return bucket
    put_on(request.getfixturevalue("hub"), laid)
    return "hf://datasets/someone/digits"


def put_on(hub: HubServer, laid: Path) -> None:
    found = [path for path in laid.rglob("*") if path.is_file()]
    hub.add("datasets/someone/digits", {str(path.relative_to(laid)): path.read_bytes() for path in found})


def test_images(url, laid) -> None:
    there, here = list_images(f"{url}/image{{s,s}}.tar"), list_images(str(laid / "images.tar"))
    assert there.digest == here.digest
    assert there.read(3) == here.read(3)


def test_folders_of_images_on_the_hub_alone_can_be_listed(laid, hub, served) -> None:
    put_on(hub, laid)
    there, here = list_images("hf://datasets/someone/digits/images"), list_images(str(laid / "images"))
    assert there.digest == here.digest
    assert there.read(3) == here.read(3)
    with pytest.raises(ValueError, match="neither tar nor Parquet files; of a web server give the URLs of those"):
        list_images(f"{served(laid)}/images/0")


def test_stores(url, laid, tmp_path, capsys) -> None:
    assert open_store(f"{url}/store").id == open_store(str(laid / "store")).id
    verify.main([f"{url}/store"])
    assert "is undamaged" in " ".join(capsys.readouterr().out.split())
    if not url.startswith("s3:"):
        with pytest.raises(ValueError, match=r"there is no place for a page beside .*; give out=PAGE\.html"):
            inspect_store.main([f"{url}/store"])
    inspect_store.main([f"{url}/store", f"tokenizer={url}/tokenizer", f"out={tmp_path}/page.html"])
    assert files.size(f"{tmp_path}/page.html") > 1000


def test_what_a_training_reads(url, laid, tmp_path) -> None:
    urls = [f"stores=[{url}/store]", f"tokenizer={url}/tokenizer", f"init={url}/generator"]
    opened = open_stores(config("generator", laid, tmp_path / "out", *urls))
    assert opened.init is not None
    assert opened.ids == [open_store(str(laid / "store")).id]


def test_a_server_without_ranges_is_named_as_such(laid) -> None:
    """Python's own http.server sends whole files, so no part of a tar can be had from it."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(laid))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert open_store(f"{url}/store").id == open_store(str(laid / "store")).id
        with pytest.raises(OSError, match="the server sends whole files where parts are asked for"):
            list_images(f"{url}/images.tar").read(3)
        server.shutdown()
