"""How an artifact gets its name: from a scratch directory beside it, in one rename."""

import shutil
import uuid
from pathlib import Path

from llama4_pipeline.artifacts.garbage import SCRATCH, discarded_name, key_of
from llama4_pipeline.artifacts.manifest import MANIFEST, Manifest, sync, write_durably


def scratch_name(target: Path) -> Path:
    """A free name beside an artifact under which it can be written."""
    return target.with_name(f"{SCRATCH}{target.name}-{uuid.uuid4().hex[:8]}")


def lock_of(entry: Path, root: Path) -> Path:
    """The lock file of an artifact, and of the other entries of the same key."""
    key = key_of(entry)
    assert key, f"{entry} is none of the store's"
    return root / ".locks" / entry.parent.relative_to(root) / key


def publish(scratch: Path, manifest: Manifest, target: Path) -> None:
    """Makes the files durable, writes the manifest and renames; an old artifact of the same key goes."""
    readable = scratch.stat().st_mode & 0o666
    for file in manifest.files:
        path = scratch / file.path
        if path.stat().st_nlink == 1:  # else it is a name of another's file, too
            path.chmod(readable)  # as safetensors makes files for their writer alone
        sync(path)
    write_durably(scratch / MANIFEST, manifest.model_dump_json(indent=1))
    sync(scratch)
    discarded = discarded_name(target)
    if target.exists():
        target.rename(discarded)
    scratch.rename(target)
    sync(target.parent)
    shutil.rmtree(discarded, ignore_errors=True)
