"""rdpm status: what of a run is done, running and next."""

from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.projects.road import read_road
from rdpm.pipeline.projects.status import standings

JOB = "status"


def main(arguments: list[str]) -> None:
    """Entry of the subcommand. It reads records, leases and logs, and changes nothing."""
    if len(arguments) != 1 or arguments[0].startswith("-") or "=" in arguments[0]:
        raise ValueError(f"arguments {' '.join(arguments)!r} are not RUN, the folder of a run")
    run = arguments[0]
    found = standings(read_road(run))
    done = [standing for standing in found if standing.state == "done"]
    say(f"status: {run}, {len(done)} of {len(found)} stages are done")
    for stage, state, note in found:
        say(f"  {state:12}{stage.job:16} {stage.out}{f'  ({note})' if note else ''}")
    if len(done) < len(found) and not any(standing.state == "running" for standing in found):
        say(f"status: nothing is running; rdpm run {run} goes on")
