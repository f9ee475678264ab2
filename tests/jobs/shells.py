"""Real interactive shells on a pseudo-terminal: keys go in, and the line that completion made comes out."""

import os
import pty
import re
import select
import signal
import time
from pathlib import Path

SHOW = b"\x18s"  # Ctrl-X s is bound to print the line as LINE<...>
START = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'bind -x \'"\\C-xs": echo "LINE<$READLINE_LINE>"\'\n'),
    "zsh": (
        ["zsh", "-f", "-i"],
        "autoload -Uz compinit && compinit -D -u; setopt no_beep no_list_beep; PROMPT='%% '\n"
        'show() { print -r -- "LINE<$BUFFER>"; }; zle -N show; bindkey "^Xs" show\n',
    ),
}


class Shell:
    """A shell that has read a completion script, in a folder."""

    def __init__(self, name: str, script: str, folder: Path) -> None:
        command, setup = START[name]
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            kept = {"PATH": os.environ["PATH"], "HOME": str(folder), "TERM": "dumb", "LC_ALL": "C.UTF-8"}
            os.execvpe(command[0], command, kept)
        source = folder / f".script.{name}"
        source.write_text(script)
        self._type(f"{setup}. {source}; echo READ''Y\n".encode())
        self._wait(rb"READY")

    def __enter__(self) -> "Shell":
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.terminal)

    def complete(self, text: str) -> str:
        """The line after typing this text and Tab."""
        self._type(text.encode() + b"\t")
        time.sleep(0.05)  # a Tab and what follows it in one read are pasted text to zsh
        self._type(SHOW)
        line = self._wait(rb"LINE<([^>]*)>")
        self._type(b"\x15")  # Ctrl-U: an empty line again
        return line

    def _type(self, data: bytes) -> None:
        os.write(self.terminal, data)

    def _wait(self, pattern: bytes) -> str:
        seen, began = b"", time.monotonic()
        while not (found := re.search(pattern, seen)):
            assert time.monotonic() - began < 30, seen
            if select.select([self.terminal], [], [], 0.2)[0]:
                seen += os.read(self.terminal, 65536)
        return found.group(found.lastindex or 0).decode()
