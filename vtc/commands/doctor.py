"""``vtc doctor``: is the installation sound?"""

from __future__ import annotations

import typer

from vtc.commands.common import Debug, user_errors


@user_errors
def doctor(debug: Debug = False) -> None:
    """Check the installation: versions, devices, torchvision, Triton, the other package called vtc, disk."""
    from vtc.doctor import report

    lines, healthy = report()
    for line in lines:
        typer.echo(line)
    if not healthy:
        raise typer.Exit(1)
