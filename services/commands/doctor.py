"""`tidegate doctor`: what is installed and reachable, line by line, with the mend for what is not."""

import click

from services.commands.options import Settings, with_output, with_settings
from services.runtime.output import Exit, Output, table


@click.command()
@with_settings
@with_output
def command(settings: Settings, out: Output) -> int:
    """What is installed and reachable. Exit code 1 when something that is needed fails."""
    from services import checkup
    from services.runtime.aio import run

    findings = run(checkup.examine(settings.load))
    failed = any(finding.status == "fail" for finding in findings)
    rows = [(f.status, f.what, f.found + (f": {f.mend}" if f.mend else "")) for f in findings]
    value = {"ok": not failed, "findings": findings}
    out.result(value, lambda console: console.print(table(("", "what", "found"), rows)))
    return Exit.NO if failed else Exit.FINE
