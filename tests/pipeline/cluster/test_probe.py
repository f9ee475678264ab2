"""What a worker proves. Here the process that tests is the worker; test_nodes has real nodes."""

from dataclasses import replace
from pathlib import Path

import pytest

from rdpm.pipeline.cluster.probe import Probe, probe_of, remove_nonce, sight
from rdpm.pipeline.foundation import files


def test_a_probe_passes_where_the_driver_made_it_and_checks_a_process_once(tmp_path) -> None:
    probe = probe_of([str(tmp_path / "a"), str(tmp_path / "b")])
    probe.check()
    for store in "ab":
        remove_nonce(str(tmp_path / store))
        assert not list((tmp_path / store).iterdir())
    probe.check()


@pytest.mark.parametrize("package", ["python", "rdpm", "torch", "zarr", "numpy"])
def test_another_version_is_refused_by_name(tmp_path, package) -> None:
    probe = probe_of([str(tmp_path)])
    other = replace(probe, versions={**probe.versions, package: "0.0"})
    with pytest.raises(ValueError, match=rf"^node [0-9.]+ \(.+\) has {package} .+ and the driver has 0.0; install"):
        other.check()


def test_what_is_missing_or_differs_is_refused_with_its_path_and_a_silent_storage_proves_nothing(
    tmp_path,
) -> None:
    image = tmp_path / "image.png"
    image.write_bytes(b"first")
    probe = probe_of([str(tmp_path / "store")], [sight(f"the image {image}", image.read_bytes)])
    image.write_bytes(b"other")
    with pytest.raises(ValueError, match=rf"does not see the image {image} as the driver does \(it reads other bytes"):
        probe.check()
    Path(tmp_path, "store", ".probe").unlink()
    with pytest.raises(ValueError, match=rf"does not see out={tmp_path}/store as the driver does \(it is not there"):
        probe.check()

    def throttled() -> bytes:
        raise files.StorageUnavailable("503")

    first = probe.sights[1]
    with pytest.raises(files.StorageUnavailable):
        Probe((replace(first, read=throttled),), probe.versions).check()
