"""run.json: the layout version of a run and what made each table."""

from __future__ import annotations

import json
from typing import Any

from rlt_data.errors import RunFolderError
from rlt_data.storage.folder import Folder
from rlt_data.storage.paths import refusal

#: The layout version without manifests, and the next, whose tables still lack columns.
FIRST_LAYOUT, SECOND_LAYOUT = 1, 2


def read_info(folder: Folder) -> dict[str, Any]:
    """Return the content of run.json. Empty for a new folder.

    Raises:
        RunFolderError: the file cannot be read, or is not the run.json of a run.
    """
    file = folder.path / "run.json"
    try:
        info = json.loads(folder.read("run.json"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise RunFolderError(f"{file}: cannot be read: {refusal(error)}") from None
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{file}: not JSON: {error}") from None
    if not _is_run_info(info):
        raise RunFolderError(f"{file}: not the run.json of a run")
    return dict(info)


def _is_run_info(info: Any) -> bool:
    """Return whether the content of a JSON file has the structure of run.json."""
    steps = info.get("steps", {}) if isinstance(info, dict) else None
    return isinstance(steps, dict) and all(
        isinstance(entry, dict) and all(isinstance(entry.get(key, {}), dict) for key in ("settings", "depends_on"))
        for entry in steps.values()
    )
