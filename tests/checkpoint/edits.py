"""Saved folders that were changed, and whose hashes agree again: what is left to find fault are the checks behind."""

from __future__ import annotations

import json
from pathlib import Path

from vtc.checkpoint.config import CONFIG, contents_sha256, sealed
from vtc.checkpoint.peft import FOLDER, files_sha256
from vtc.files.digest import file_sha256
from vtc.files.folders import names_in


def edit(folder: Path, **changes) -> None:
    """Change ``vtc_config.json`` (``...``: leave the key out) and its hash of itself."""
    config = json.loads((folder / CONFIG).read_text()) | changes
    config = {key: value for key, value in config.items() if value is not ...}
    (folder / CONFIG).write_text(json.dumps(sealed(config)))


def rehash(folder: Path) -> None:
    """Take the hashes of all files anew."""
    names = [name for name in names_in(folder) if name not in (CONFIG, "README.md")]
    changes = {"files": {name: file_sha256(folder / name) for name in names}, "weights_sha256": contents_sha256(folder)}
    if (folder / FOLDER).is_dir():
        changes["adapter"] = {"name": "default", "sha256": files_sha256(folder / FOLDER)}
    edit(folder, **changes)


def as_first_schema(folder: Path) -> None:
    """As vtc 0.1 wrote it: one hash for all weights, and the names of the files."""
    config = json.loads((folder / CONFIG).read_text())
    config |= {"schema_version": 1, "files": sorted(config["files"])}
    del config["sha256"]
    (folder / CONFIG).write_text(json.dumps(config))
