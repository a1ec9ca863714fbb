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
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

LIBRARY = Path(__file__).parents[1]
WITHOUT_NUMBERS = {  # code that no row depends on
    "plots.py", "report.py", "explore.py", "claims.py", "peers.py", "training.py", "doctor.py",
    "parameters.py", "cluster.py",
}  # fmt: skip


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
    """All ids, and up to 32 pictures whole, with what is known of them: enough to see that a dataset
    was made anew, or got other labels or masks."""
    parts = [json.dumps(ids)]
    for i in sorted({k * (len(ids) - 1) // 31 for k in range(32)}) if ids else ():
        with contextlib.suppress(Exception):  # one that cannot be read is skipped later, and listed
            sample = dataset[i]
            parts += [sample.pixels.numpy().tobytes(), repr(sample.classes)]
            for masks in (sample.masks, sample.pixel_masks):
                parts += [f"{c} {sha256([mask.numpy().tobytes()])}" for c, mask in masks.items()]
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
        table = pq.read_table(shard, page_checksum_verification=True, partitioning=None)
        facts, digest = (table.schema.metadata[key] for key in (b"facts", b"sha256"))
        return table if _digest(table, facts) == digest.decode() else None
    except Exception:  # damage may lead a reader anywhere
        return None


def write(shard, rows, facts):
    """Rows (a DataFrame) and facts about them (for JSON) as a shard."""
    table = pa.Table.from_pandas(rows, preserve_index=False)
    facts = json.dumps(facts).encode()
    metadata = {"facts": facts, "sha256": _digest(table, facts)}
    table = table.replace_schema_metadata(metadata)
    _replace(shard, lambda path: pq.write_table(table, path, write_page_checksum=True))


def _digest(table, facts):
    """Of facts, names and values: Parquet's own checksums leave its headers out."""
    parts = [facts]
    for name, column in zip(table.column_names, table.itercolumns(), strict=True):
        parts.append(f"{name} {len(column)}")
        for values in _flat(column.combine_chunks()):
            text = values.dtype == object
            parts.append(json.dumps(values.tolist()) if text else values.tobytes())
    return sha256(parts)


def _flat(column):
    """A column's values as numpy arrays, those of lists one after the other behind their lengths."""
    if isinstance(column, (pa.ListArray, pa.LargeListArray)):
        yield column.value_lengths().to_numpy(zero_copy_only=False)
        column = column.flatten()
    yield column.to_numpy(zero_copy_only=False)


def _replace(path, write):
    """Write to a name of our own, then rename: nobody ever sees half a file."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def begin(run, settings, ids, seed):
    """A run's folder, its list of pictures, and a manifest that says that it is not finished."""
    run.mkdir(parents=True, exist_ok=True)
    _write_manifest(run, {"finished": False, "settings": settings, "seed": seed})
    pictures = pd.DataFrame({"id": ids})
    _replace(run / "pictures.csv", lambda file: pictures.to_csv(file, index_label="position"))


def finish(run, files):
    """Complete the manifest from the shards: what was run, where, for how long, what was skipped.

    No path of this machine is in it.
    """
    content = json.loads((run / "manifest.json").read_text("utf-8"))
    rows, seconds, measured, without, counts, devices = 0, 0, 0, 0, Counter(), Counter()
    skipped, failed = [], []
    for file in files:  # one after the other: all of them may not fit into memory
        table = read(file)
        if table is None:
            raise OSError(f"{file.name} is missing or damaged again: call evaluate as before")
        facts = json.loads(table.schema.metadata[b"facts"])
        rows, seconds = rows + table.num_rows, seconds + facts["seconds"]
        measured += facts["pictures"]
        counts.update(facts["counts"])
        devices[facts["device"]] += 1
        skipped += facts["skipped"]  # pictures, and single classes of pictures that have rows
        with_rows = set(table["id"].to_pylist()) if table.num_rows else set()
        without += len({name for name, _ in facts["skipped"]} - with_rows)
        failed += facts["failed"]
    content |= {
        "finished": True,
        "rows": rows,
        "pictures": {
            "measured": measured,
            "skipped": without,
            "failed": len(failed),
        },
        "skipped": skipped,
        "failed": failed,
        "counts": counts,
        "seconds": round(seconds, 1),
        "devices": devices,
        "python": platform.python_version(),
        "commit": commit(),
    }
    _write_manifest(run, content)


def is_finished(run):
    try:
        return json.loads((run / "manifest.json").read_text("utf-8"))["finished"]
    except (OSError, ValueError, KeyError):
        return False


def _write_manifest(run, content):
    text = json.dumps(content, indent=2) + "\n"
    _replace(run / "manifest.json", lambda file: file.write_text(text, "utf-8"))


def name_of(device):
    """A device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {os.cpu_count()} cores"


def reason(error):
    """An error in one line, for a manifest."""
    return without_folders(f"{type(error).__name__}: {error}")


def versions():
    return {name: version(name) for name in ("torch", "torchvision", "kornia")}


def commit():
    """The commit of this library's code, with "-dirty" behind it if that was changed since."""
    name, changed = ["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "."]
    try:
        name, changed = (
            subprocess.run(command, cwd=LIBRARY, capture_output=True, text=True).stdout.strip()
            for command in (name, changed)
        )
    except OSError:  # no git here
        return None
    return name + ("-dirty" if changed else "") if name else None


def without_folders(text):
    """Keeps file names and drops their folders: a manifest is for other machines too."""
    return re.sub(r"(?<!\w)([A-Za-z]:)?[/\\][^'\"\n]*[/\\]", "", text)
