"""Runs a part as a process of its own, and keeps what came of it as one file of JSON."""

import contextlib
import ctypes
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import Part

ROOT = Path(__file__).parents[2]
_TAIL = 4_000  # characters of a part's output that are kept
_SOURCES = ("rdpm", "benchmarks", "tests", "models", "pipeline", "jobs", "storage_schemas")
_PR_SET_PDEATHSIG = 1
_FACTS = (
    "import json, torch; gpu = torch.cuda.is_available(); print(json.dumps({"
    "'device': torch.cuda.get_device_name() if gpu else None, 'torch': torch.__version__, "
    "'cuda': torch.version.cuda}))"
)


@dataclass(frozen=True)
class Machine:
    """Where and of what a result was made."""

    device: str | None
    """Name of the GPU; None without one."""
    driver: str
    """Version of its driver."""
    torch: str
    """Version of torch."""
    cuda: str | None
    """Version of CUDA that torch was built with."""
    commit: str
    """The commit, with a digest of the sources where they differ from it."""


def machine(commit: str | None = None) -> Machine:
    """This machine. A process of its own asks torch, so that this one holds no memory of the GPU."""
    done = subprocess.run([sys.executable, "-c", _FACTS], capture_output=True, text=True, check=True, cwd=ROOT)
    return Machine(**json.loads(done.stdout.splitlines()[-1]), driver=_driver(), commit=commit or _commit())


def _driver() -> str:
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    with contextlib.suppress(OSError):
        found = re.search(r"Kernel Module\D*([\d.]+)", Path("/proc/driver/nvidia/version").read_text())
        if found:
            return found.group(1)
    return "unknown"


def _commit() -> str:
    """HEAD, and what the sources are where they are not HEAD's."""
    sources = hashlib.sha256()
    for folder in _SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            sources.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    try:
        head = _git("rev-parse", "--short=10", "HEAD")
        return f"{head}+{sources.hexdigest()[:8]}" if _git("status", "--porcelain", "--", *_SOURCES) else head
    except (OSError, subprocess.CalledProcessError):
        return f"sources {sources.hexdigest()[:8]}"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()


def path_of(out: Path, part: Part) -> Path:
    """Where the result of a part is kept."""
    return out / f"{re.sub(r'[^a-z0-9_-]+', '-', part.name.lower())}.json"


def read(out: Path, part: Part) -> dict[str, Any] | None:
    """The result of a part; None where there is none."""
    try:
        return json.loads(path_of(out, part).read_text())
    except FileNotFoundError:
        return None


def finished(out: Path, part: Part, here: Machine) -> bool:
    """Whether a part came to an end on this device, of this commit."""
    result = read(out, part)
    return result is not None and result["machine"] == asdict(here)


def run(part: Part, here: Machine, out: Path) -> dict[str, Any]:
    """Run a part to its end or to its limit, and write its result. A start that is killed in it leaves none."""
    out.mkdir(parents=True, exist_ok=True)
    log = path_of(out, part).with_suffix(".log")
    began = time.time()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *part.arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join((str(ROOT), *_paths()))},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        try:
            process.wait(part.seconds)
            late = False
        except subprocess.TimeoutExpired:
            late = True
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # it, and what it started
            code = process.wait()
    text = log.read_text(errors="replace").replace(f"{ROOT}/", "")
    result = {
        "part": part.name,
        "command": " ".join(("python", *part.arguments)),
        "machine": asdict(here),
        "began": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(began)),
        "seconds": round(time.time() - began, 1),
        "limit": part.seconds,
        "timed_out": late,
        "exit_code": code,
        "printed": _printed(text),
        "tail": text[-_TAIL:],
    }
    _write(path_of(out, part), json.dumps(result, indent=1))
    log.unlink()
    return result


def _paths() -> list[str]:
    """What PYTHONPATH names now."""
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def _printed(text: str) -> dict[str, Any] | None:
    """The last line that is a JSON object, or what pytest counted; None where there is neither."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            with contextlib.suppress(ValueError):
                return json.loads(line)
        if re.match(r"\d+ \w+.* in [\d.:]+", line.strip("= ")):
            return {what: int(count) for count, what in re.findall(r"(\d+) ([a-z]+)", line.partition(" in ")[0])}
    return None


def _write(path: Path, text: str) -> None:
    """Replace a file as a whole."""
    fresh = path.with_suffix(".part")
    with fresh.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
