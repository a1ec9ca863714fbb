"""The files of a run: shards that are whole or not there, and a manifest."""

import errno
import hashlib
import json
import os
import platform
import re
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

LIBRARY = Path(__file__).parents[1]
DISK_ERRORS = {
    errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ETIMEDOUT,
    errno.EHOSTDOWN, errno.EMFILE, errno.ENFILE,
}  # fmt: skip


def is_out_of_reach(error: BaseException | None) -> bool:
    """Whether the disk is to blame and not a file, which must not be skipped for good then."""
    while error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            return True
        if isinstance(error, FileNotFoundError) and error.filename:
            return not Path(error.filename).parent.is_dir()  # such as a disk that is not mounted
        error = error.__cause__
    return False


def patiently(read: Callable, pauses: Iterable[float] = (0.2, 1)) -> Any:
    """read(), again after a pause where the disk fails; the last error is raised."""
    for pause in pauses:
        try:
            return read()
        except OSError as error:
            if not is_out_of_reach(error):
                raise
        time.sleep(pause)
    return read()


def sha256(parts: Iterable) -> str:
    """Hex digest of texts and bytes, one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


def read(shard: Path) -> pa.Table | None:
    """A shard's table, or None where it is missing or damaged.

    Raises OSError where the disk fails.
    """
    try:
        table = patiently(lambda: pq.read_table(shard, page_checksum_verification=True, partitioning=None))
        facts, digest = (table.schema.metadata[key] for key in (b"facts", b"sha256"))
        return table if _digest(table, facts) == digest.decode() else None
    except FileNotFoundError:
        return None
    except Exception as error:  # damage may lead a reader anywhere
        if is_out_of_reach(error):
            raise
        return None


def facts_of(table: pa.Table) -> dict:
    """The facts that were written with a shard's rows."""
    return json.loads(table.schema.metadata[b"facts"])


def write(shard: Path, rows: pd.DataFrame, facts: dict) -> None:
    """Rows (a DataFrame) and facts about them (for JSON) as a shard."""
    table = pa.Table.from_pandas(rows, preserve_index=False)
    text = json.dumps(facts).encode()
    metadata = {"facts": text, "sha256": _digest(table, text)}
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


def replace(path: Path, write: Callable[[Path], Any], over: bool = True) -> None:
    """Write to a name of our own, then rename: nobody ever sees half a file.

    over: False leaves a file that is there as it is, also one that came meanwhile.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        write(temporary)
        if not over:
            try:
                os.link(temporary, path)  # unlike a rename, it fails where there is one
                return
            except FileExistsError:
                return
            except OSError:  # a disk without links
                if path.exists():
                    return
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def begin(
    run: Path, settings: dict, ids: list, seed: Any, behaviour: list, decide: Callable[[], bool] = bool
) -> dict:
    """A run's folder, its list of pictures, and a manifest that says that it is not finished; returns what
    the manifest says.

    decide: whether scoring passes are compiled, asked where there is no manifest yet. A manifest that is there stays: a process that comes late must not take a finished run's away.
    """
    if known := manifest(run):
        return known
    damaged = (run / "manifest.json").exists()
    run.mkdir(parents=True, exist_ok=True)
    pictures = pd.DataFrame({"id": ids})
    replace(run / "pictures.csv", lambda file: pictures.to_csv(file, index_label="position"))
    content = {
        "finished": False,
        "settings": settings,
        "seed": seed,
        "behaviour": behaviour,
        "compiled": decide(),
    }
    _write_manifest(run, content, over=damaged)
    return manifest(run) or content


def manifest(run: Path) -> Any:
    """What a run's manifest says, or None where there is none that can be understood.

    Raises OSError where the disk fails.
    """
    try:
        content = json.loads(patiently(lambda: _text_of(run / "manifest.json")))
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _text_of(file):
    """A file's text, "" where there is none: it is no failure of the disk, as a picture's absence may be."""
    try:
        return file.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return ""


def finish(run: Path, files: Iterable[Path]) -> None:
    """Complete the manifest from the shards: what was run, where, for how long, what was skipped.

    No path of this machine is in it.
    """
    content = manifest(run)
    if content is None:
        raise OSError("manifest.json is missing or damaged: call evaluate as before")
    rows, seconds, measured, without = 0, 0, 0, 0
    counts: Counter[str] = Counter()
    devices: Counter[str] = Counter()
    skipped, failed = [], []
    for file in files:  # one after the other: all of them may not fit into memory
        table = read(file)
        if table is None:
            raise OSError(f"{file.name} is missing or damaged again: call evaluate as before")
        facts = facts_of(table)
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


def is_finished(run: Path) -> bool:
    """Whether all of a run's shards were there once."""
    return bool((manifest(run) or {}).get("finished"))


def _write_manifest(run, content, over=True):
    text = json.dumps(content, indent=2) + "\n"
    replace(run / "manifest.json", lambda file: file.write_text(text, "utf-8"), over)


def name_of(device: torch.device) -> str:
    """A device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {os.cpu_count()} cores"


def reason(error: BaseException) -> str:
    """An error in one line, for a manifest."""
    return without_folders(f"{type(error).__name__}: {error}")


def commit() -> str | None:
    """The commit of this library's code, with "-dirty" behind it if that was changed since."""
    commands = ["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "."]
    try:
        name, changed = (
            subprocess.run(command, cwd=LIBRARY, capture_output=True, text=True).stdout.strip()
            for command in commands
        )
    except OSError:  # no git here
        return None
    return name + ("-dirty" if changed else "") if name else None


def without_folders(text: str) -> str:
    """Keeps file names and drops their folders: a manifest is for other machines too."""
    return re.sub(r"(?<!\w)([A-Za-z]:)?[/\\][^'\"\n]*[/\\]", "", text)
