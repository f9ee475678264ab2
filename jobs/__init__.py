"""One thin module a command: parse, build, run, commit."""
