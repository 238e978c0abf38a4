"""``rlt-data formats``."""

from __future__ import annotations

from typing import Annotated

import typer


def formats(name: Annotated[str | None, typer.Argument(help="A built-in format, or a YAML file.")] = None) -> None:
    """List the built-in formats, or print one as YAML to start your own from."""
    import yaml

    from rlt_data.formats import BUILT_IN, load_format

    if name is None:
        typer.echo("\n".join(BUILT_IN))
    else:
        content = load_format(name).model_dump(mode="json")
        typer.echo(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100), nl=False)
