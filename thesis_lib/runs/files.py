"""The files of a run: shards that are whole or not there, and a manifest."""

import contextlib
import errno
import json
import os
import platform
import re
import subprocess
import time
import uuid
from collections import Counter
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from thesis_lib.runs.key import sha256

LIBRARY = Path(__file__).parents[1]
DISK_ERRORS = {
    errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ETIMEDOUT,
    errno.EHOSTDOWN, errno.EMFILE, errno.ENFILE,
}  # fmt: skip


def is_out_of_reach(error):
    """Whether the disk is to blame and not a file, which must not be skipped for good then."""
    while error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            return True
        if isinstance(error, FileNotFoundError) and error.filename:
            return not Path(error.filename).parent.is_dir()  # such as a disk that is not mounted
        error = error.__cause__
    return False


def patiently(read, tries=3, pause=0.5):
    """read(), once more after an error of the disk; the last one is raised."""
    for left in reversed(range(tries)):
        try:
            return read()
        except OSError as error:
            if not left or not is_out_of_reach(error):
                raise
        time.sleep(pause)


def facts_of(shard):
    """The facts in a shard's header, or None where it is missing or damaged; no row is read."""
    with contextlib.suppress(Exception):
        return json.loads(pq.read_schema(shard).metadata[b"facts"])


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
    replace(shard, lambda path: pq.write_table(table, path, write_page_checksum=True))


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


def replace(path, write):
    """Write to a name of our own, then rename: nobody ever sees half a file."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def begin(run, settings, ids, seed, behaviour):
    """A run's folder, its list of pictures, and a manifest that says that it is not finished.

    A manifest that is there stays: a process that comes late must not take a finished run's away.
    """
    run.mkdir(parents=True, exist_ok=True)
    if manifest(run) is not None:
        return
    pictures = pd.DataFrame({"id": ids})
    replace(run / "pictures.csv", lambda file: pictures.to_csv(file, index_label="position"))
    content = {"finished": False, "settings": settings, "seed": seed, "behaviour": behaviour}
    _write_manifest(run, content)


def manifest(run):
    """What a run's manifest says, or None where there is none that can be understood.

    Raises OSError where the disk fails.
    """
    path = run / "manifest.json"
    if not path.exists():
        return None
    try:
        return json.loads(patiently(lambda: path.read_text("utf-8")))
    except ValueError:
        return None


def finish(run, files):
    """Complete the manifest from the shards: what was run, where, for how long, what was skipped.

    No path of this machine is in it.
    """
    content = manifest(run)
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
    return bool((manifest(run) or {}).get("finished"))


def _write_manifest(run, content):
    text = json.dumps(content, indent=2) + "\n"
    replace(run / "manifest.json", lambda file: file.write_text(text, "utf-8"))


def name_of(device):
    """A device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {os.cpu_count()} cores"


def reason(error):
    """An error in one line, for a manifest."""
    return without_folders(f"{type(error).__name__}: {error}")


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
