"""The command `rdpm`: one subcommand per job. Heavy imports happen in the module of the job that needs them."""

import difflib
import importlib
import os
import sys

from rdpm import __version__
from rdpm.jobs.help import keys_help

COMMANDS = {
    "init": ("rdpm.jobs.init", "choose the settings of a run for your pictures, this machine and your hours"),
    "run": ("rdpm.jobs.run", "go the road of a run, stage by stage, to its report"),
    "status": ("rdpm.jobs.status", "say what of a run is done, running and next"),
    "prepare": ("rdpm.jobs.prepare", "digits or photos: write real images of installed packages as image folders"),
    "train-tokenizer": ("rdpm.jobs.train_tokenizer", "train the tokenizer on a folder of images"),
    "tokenize": ("rdpm.jobs.tokenize_images", "encode images into a token store"),
    "train-generator": ("rdpm.jobs.train_generator", "train the generator on token stores"),
    "calibrate": ("rdpm.jobs.calibrate", "match samples' latents to real ones, so that samples vary as much"),
    "sample": ("rdpm.jobs.sample", "draw and decode a set of samples"),
    "sweep": ("rdpm.jobs.sweep", "sample and measure many sampler settings: a table, a plot, the best config"),
    "evaluate": ("rdpm.jobs.evaluate", "measure reconstructions and samples"),
    "diagnose": ("rdpm.jobs.diagnose", "show where a generator loses variety, step by step, on real images"),
    "report": ("rdpm.jobs.report", "write one HTML page about a run"),
    "serve": (
        "rdpm.jobs.serve",
        "a page on this machine to draw, redraw, vary and blend pictures with a trained model",
    ),
    "push": ("rdpm.jobs.push", "publish the trained models of a run under a URL, with a card to read"),
    "export": ("rdpm.jobs.export", "write the models of a run as ONNX graphs, with a sampler in numpy"),
    "compare": ("rdpm.jobs.compare", "RDPM beside its rivals at equal parameters and training FLOPs: a table, a plot"),
    "scaling": ("rdpm.jobs.scaling", "how quality grows with training FLOPs, for methods of several sizes"),
    "ablate-tokenizer": ("rdpm.jobs.ablate_tokenizer", "the paper's Table 2 and schedules on any images"),
    "describe": ("rdpm.jobs.describe", "parameters, FLOPs and memory of a config"),
    "verify": ("rdpm.jobs.verify", "check every byte of a store and that its parts agree; repair it"),
    "inspect": ("rdpm.jobs.inspect_store", "show what a token store is, what made it and how its codes are used"),
    "completion": (
        "rdpm.jobs.completion",
        "print a script for a shell, which then completes commands, keys and values",
    ),
}

_CONFIG, _WAIT = "CONFIG.yaml [key=value ...]", "[--wait[=SECONDS]]"
_OPTIONS = f"{_CONFIG} {_WAIT}"
_USAGE = {
    "init": f"IMAGES RUN [size=PIXELS] [hours=HOURS] {_WAIT}",
    "run": "RUN",
    "status": "RUN",
    "prepare": f"digits|photos [CONFIG.yaml] [key=value ...] {_WAIT}",
    "completion": "bash|zsh",
    "describe": f"{_CONFIG} [--json]",
    "evaluate": f"CONFIG.yaml|SAMPLES [key=value ...] {_WAIT}",
    "export": "RUN FOLDER [tokenizer=FOLDER]",
    "inspect": "STORE [tokenizer=FOLDER] [out=PAGE.html]",
    "push": "RUN URL [key=value ...], or URL generator=FOLDER tokenizer=FOLDER [key=value ...]",
    "serve": "RUN [tokenizer=FOLDER] [port=N] [batch=N] [device=auto|cpu|cuda]",
    "verify": f"STORE [tokenizer=FOLDER] [processes=N] [resume=FILE] [--repair {_OPTIONS}]",
}


def usage_of(name: str) -> str:
    """What follows the name of a command."""
    return _USAGE.get(name, _OPTIONS)


def usage() -> str:
    """The help text."""
    lines = [f"  rdpm {name} {usage_of(name)}\n      {text}" for name, (_, text) in COMMANDS.items()]
    wait = "  --wait waits, for so long or without end, while another start writes the same output"
    more = "  rdpm COMMAND --help lists the keys of a command, with type, default and meaning"
    return "\n".join(["usage:", *lines, wait, more, "  rdpm --version"])


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; returns the exit code.

    A ValueError, an OSError and an extra that is not installed are the user's: one sentence, code 2.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    arguments = [a for a in arguments if not a.startswith("--local_rank=")]  # the deepspeed launcher adds it
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        return _print(usage())
    if arguments[0] == "--version":
        return _print(f"rdpm {__version__}")
    name, *rest = arguments
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        meant = f"did you mean {near[0]}?" if near else f"use one of {', '.join(COMMANDS)}"
        print(f"rdpm: unknown command {name!r}; {meant}", file=sys.stderr)
        return 2
    if "-h" in rest or "--help" in rest:
        module, text = COMMANDS[name]
        keys = keys_help(module, "CONFIG.yaml" in usage_of(name))
        return _print(f"usage: rdpm {name} {usage_of(name)}\n{text}\n\n{keys}")
    from rdpm.pipeline.foundation.extras import extra_for
    from rdpm.pipeline.foundation.lease import waiting
    from rdpm.pipeline.foundation.secrets import mask_output, masked

    mask_output()
    _let_waiting_threads_sleep()
    try:
        rest, seconds = _wait(rest) if _WAIT in _USAGE.get(name, _OPTIONS) else (rest, 0.0)
        with waiting(seconds):
            importlib.import_module(COMMANDS[name][0]).main(rest)
    except (ValueError, OSError) as error:
        print(f"rdpm {name}: {masked(_sentence(error))}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        sentence = extra_for(error)
        if sentence is None:
            raise
        print(f"rdpm {name}: {sentence}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"rdpm {name}: interrupted; run it again to continue", file=sys.stderr)
        return 130
    return 0


def _let_waiting_threads_sleep() -> None:
    """Have PyTorch's threads (libgomp) sleep soon while they wait, unless the environment says otherwise.

    By default they run a loop, which on a busy machine keeps the core from the thread that they wait for. libgomp reads
    this when PyTorch is imported, here and in every process that this one starts.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _print(text: str) -> int:
    """Print a help text, also into a pager that is closed before its end."""
    try:
        print(text.rstrip(), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes when it ends
    return 0


def _sentence(error: Exception) -> str:
    """An error in one line."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(text.split())


def _wait(arguments: list[str]) -> tuple[list[str], float]:
    """The arguments without `--wait`, and the seconds that it says: 0 where it is not given, endless without a number.

    Raises ValueError for anything but a whole number.
    """
    given = [a for a in arguments if a.split("=")[0] == "--wait"]
    seconds = given[-1].removeprefix("--wait").removeprefix("=") if given else "0"
    if seconds and not seconds.isdecimal():
        raise ValueError(f"{given[-1]} is no whole number of seconds; use --wait, or for example --wait=600")
    return [a for a in arguments if a not in given], float(seconds or "inf")


if __name__ == "__main__":
    sys.exit(main())
