"""The files of a run: shards that are whole or not there, a manifest, and a key for the run."""

import contextlib
import functools
import hashlib
import inspect
import itertools
import json
import os
import platform
import re
import subprocess
import uuid
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

LIBRARY = Path(__file__).parents[1]
WITHOUT_NUMBERS = {"plots.py", "report.py", "training.py"}  # code that no row depends on


def sha256(parts):
    """Hex digest of texts and bytes, one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


def code():
    """Digest of this library's sources."""
    sources = sorted(LIBRARY.rglob("*.py"))
    return sha256(path.read_bytes() for path in sources if path.name not in WITHOUT_NUMBERS)


def fingerprint(dataset, ids):
    """All ids, and the first and last picture whole: enough to see that a dataset was made anew."""
    parts = [json.dumps(ids)]
    for i in {0, len(ids) - 1} if ids else ():
        with contextlib.suppress(Exception):  # one that cannot be read is skipped later, and listed
            sample = dataset[i]
            parts += [sample.pixels.numpy().tobytes(), repr(sample.classes)]
            parts += [mask.numpy().tobytes() for mask in sample.masks.values()]
    return sha256(parts)


def describe_classifier(clf):
    """What of a classifier changes its maps; `batch` is not among it."""
    state = clf.network.state_dict().items()
    names = [f"{name} {tensor.dtype} {tuple(tensor.shape)}" for name, tensor in state]
    values = (t.cpu().contiguous().reshape(-1).view(torch.uint8).numpy() for _, t in state)
    return {
        "name": clf.name,
        "layer": clf.layer,
        "activation": clf.activation,
        "normalisation": [list(clf.mean), list(clf.std)],
        "dtype": str(clf.dtype),
        "device": clf.device.type,
        "sha256": sha256(itertools.chain(names, values)),
    }


def describe(value):
    """What tells a method and its settings from others, in this process and in the next.

    Of a function its source, its defaults and what it closes over; not what it calls in turn.
    """
    if isinstance(value, functools.partial):
        return [describe(value.func), describe(value.args), describe(value.keywords)]
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    if inspect.isfunction(value):
        inside = [cell.cell_contents for cell in value.__closure__ or ()]
        inside += [value.__defaults__, value.__kwdefaults__]
        name = f"{value.__module__}.{value.__qualname__}"
        return [name, sha256([inspect.getsource(value)])[:16], describe(inside)]
    if " at 0x" in repr(value):
        raise ValueError(
            f"{value!r} has no stable description: give methods as functions, and their settings "
            "as plain values by functools.partial"
        )
    return repr(value)


def read(shard):
    """A shard's table, or None where it is missing or damaged."""
    try:
        return pq.read_table(shard, page_checksum_verification=True, partitioning=None)
    except (OSError, pa.ArrowException):
        return None


def write(shard, rows, facts):
    table = pa.Table.from_pandas(rows, preserve_index=False)
    table = table.replace_schema_metadata({"facts": json.dumps(facts)})
    _replace(shard, lambda path: pq.write_table(table, path, write_page_checksum=True))


def _replace(path, write):
    """Write to a name of our own, then rename: nobody ever sees half a file."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_manifest(run, settings, files, device):
    """What was run, where, for how long, what was skipped; no path of this machine."""
    tables = [read(file) for file in files]
    facts = [json.loads(table.schema.metadata[b"facts"]) for table in tables]
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    content = {
        "settings": settings,
        "rows": sum(table.num_rows for table in tables),
        "skipped": [item for fact in facts for item in fact["skipped"]],
        "counts": sum((Counter(fact["counts"]) for fact in facts), Counter()),
        "seconds": round(sum(fact["seconds"] for fact in facts), 1),
        "device": gpu or f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "commit": _commit(),
    }
    _replace(
        run / "manifest.json", lambda file: file.write_text(json.dumps(content, indent=2) + "\n")
    )


def _commit():
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=LIBRARY, capture_output=True, text=True)
    except OSError:  # no git here
        return None
    return done.stdout.strip() or None


def without_folders(text):
    """Keeps file names and drops their folders: a manifest is for other machines too."""
    return re.sub(r"(?<!\w)([A-Za-z]:)?[/\\][^'\"\n]*[/\\]", "", text)
