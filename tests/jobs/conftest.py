"""Running commands: each in a process of its own."""

import contextlib
import json
import subprocess

import pytest

from tests.jobs.commands import ENVIRONMENT, LOADED, Ended


@pytest.fixture(scope="module")
def rdpm(python, repository):
    """Run `python -m rdpm` with these arguments."""

    def run(*arguments: str) -> Ended:
        command = [*python, "-m", "rdpm", *arguments]
        done = subprocess.run(
            command, cwd=repository, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def loaded_rdpm(python, repository, tmp_path_factory):
    """The same, each run a process of its own, forked from one that has imported the jobs."""
    folder = tmp_path_factory.mktemp("streams")
    server = subprocess.Popen(
        [*python, "-c", LOADED],
        cwd=repository,
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def run(*arguments: str) -> Ended:
        server.stdin.write(json.dumps([arguments, str(folder)]) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return Ended(code, (folder / "stdout").read_text(), (folder / "stderr").read_text())

    yield run
    server.communicate(timeout=30)


@pytest.fixture
def untouched(tmp_path):
    """A block that must leave tmp_path as it finds it, except for leases."""

    def listing() -> list[tuple[str, int]]:
        paths = (path for path in tmp_path.rglob("*") if ".lease" not in str(path))
        return sorted((str(path), path.stat().st_size) for path in paths)

    @contextlib.contextmanager
    def block():
        before = listing()
        yield
        assert listing() == before

    return block
