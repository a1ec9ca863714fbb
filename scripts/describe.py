"""Descriptions that machines read, made of what stands here already: `make describe`.

    ro-crate-metadata.json            the repository as a research object, RO-Crate 1.1
    data/photographs/croissant.json   the photographs, Croissant 1.0
    data/cutouts/croissant.json       the cut-outs, Croissant 1.0

Licences come from LICENSE, what folders hold from README.md and data/README.md, version and date from CHANGELOG.md,
authors and title from CITATION.cff. There is no public address of this repository yet, so none is given.
"""

import hashlib
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
Json = dict[str, Any]
FORMATS = {".md": "text/markdown", ".jpg": "image/jpeg", ".yml": "application/yaml"}
STEM = r"^([^.]+)"  # of a file's name

# The names that Croissant 1.0 asks for, as its specification lists them.
CONTEXT: Json = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    **{name: f"cr:{name}" for name in (
        "citeAs column examples extract field fileObject fileProperty fileSet format includes isLiveDataset jsonPath "
        "key md5 parentField path recordSet references regex repeated replace separator source subField transform"
    ).split()},
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "equivalentProperty": "cr:equivalentProperty",
    "samplingRate": "cr:samplingRate",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
}  # fmt: skip


def text(name: str) -> str:
    """A file of this repository."""
    return (ROOT / name).read_text("utf-8")


def licences() -> dict[str, tuple[str, str]]:
    """LICENSE's table: pattern -> (licence, remark)."""
    rows = re.findall(r"^\| (`.*?`) \| (.*?) \| (.*?) \|$", text("LICENSE"), re.M)
    return {entry: (name, remark) for files, name, remark in rows for entry in re.findall("`(.*?)`", files)}


def licence(name: str) -> str | None:
    """The licence of a file or folder/, by the longest entry of LICENSE's table that it fits; None if it fits none.

    "folder/" fits what is in it, "*" and "*.md" a file in the first folder, and any other entry that file itself.
    """  # fmt: skip

    def fits(entry: str) -> bool:
        if entry.startswith("*"):
            return "/" not in name and name.endswith(entry[1:])
        return name.startswith(entry) if entry.endswith("/") else name == entry

    found = [entry for entry in licences() if fits(entry)]
    return licences()[max(found, key=len)][0] if found else None


def spdx(name: str) -> list[str]:
    """The addresses of the licences in an SPDX expression; "#LicenseRef-..." for those that SPDX does not know."""
    names = re.split(" AND | OR ", name)
    return [f"#{n}" if n.startswith("LicenseRef") else f"https://spdx.org/licenses/{n}" for n in names]


def release() -> tuple[str, str]:
    """The newest version in CHANGELOG.md, and its date."""
    newest = re.search(r"^## (\d+\.\d+\.\d+), (\d{4}-\d\d-\d\d)$", text("CHANGELOG.md"), re.M)
    assert newest, "CHANGELOG.md has no heading such as '## 0.2.0, 2026-12-01'"
    return newest[1], newest[2]


def folders() -> dict[str, str]:
    """What README.md and data/README.md say of folders: "data/weights/" -> words."""
    block = re.search(r"## What is where\n\n(.*?)\n\n## ", text("README.md"), re.S)
    assert block, "README.md has no section 'What is where'"
    top = re.findall(r"^    (\w+/) +(.+(?:\n {10}.+)*)", block[1], re.M)
    data = re.findall(r"^\| `(\w+/)` \| (.*?) \|$", text("data/README.md"), re.M)
    return {name: re.sub(r"\s+", " ", words) for name, words in [*top, *((f"data/{n}", w) for n, w in data)]}


def linked(names: list[str]) -> Json | list[Json]:
    """References to entities of the crate; one alone without a list, as RO-Crate asks."""
    found: list[Json] = [{"@id": name} for name in names]
    return found[0] if len(found) == 1 else found


def crate() -> Json:
    """RO-Crate: the repository, its parts, whose they are and under which licences."""
    citation, (version, date) = yaml.safe_load(text("CITATION.cff")), release()
    (paper,) = citation["references"]
    article = f"https://doi.org/{paper['doi']}"
    people = [f"{a['given-names']} {a['family-names']}" for a in paper["authors"]]
    parts = [entry for entry in licences() if not entry.startswith("*")]
    parts += "README.md LICENSE CHANGELOG.md CITATION.cff codecheck.yml requirements.lock Makefile".split()
    said, remarks = folders(), dict[str, str]()
    for name, remark in licences().values():
        for address in spdx(name):
            remarks.setdefault(address, remark)
    entities: list[Json] = []
    for part in sorted(parts):
        entity: Json = {"@id": part, "@type": "Dataset", "name": part}
        if not part.endswith("/"):
            entity |= {"@type": "File", "encodingFormat": FORMATS.get(Path(part).suffix, "text/plain")}
        if part in said:
            entity["description"] = said[part]
        if f"{part}croissant.json" in FILES:
            about = f"{part}croissant.json"
            words = f"Croissant description of {part}"
            entities.append(
                {"@id": about, "@type": "File", "name": words, "encodingFormat": "application/ld+json"}
            )
            entity["subjectOf"] = {"@id": about}
        entities.append({**entity, "license": linked(spdx(licence(part) or ""))})
    root = {
        "@id": "./",
        "@type": "Dataset",
        "name": citation["title"],
        "description": tomllib.loads(text("pyproject.toml"))["project"]["description"],
        "version": version,
        "datePublished": date,
        "keywords": ", ".join(citation["keywords"]),
        "license": linked(sorted(remarks)),
        "author": {"@id": "#authors"},
        "citation": {"@id": article},
        "hasPart": [{"@id": e["@id"]} for e in entities],
    }
    return {
        "@context": "https://w3id.org/ro/crate/1.1/context",
        "@graph": [
            {
                "@id": "ro-crate-metadata.json",
                "@type": "CreativeWork",
                "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
                "about": {"@id": "./"},
            },
            root,
            *entities,
            {"@id": "#authors", "@type": "Organization", "name": citation["authors"][0]["name"]},
            {
                "@id": article,
                "@type": "ScholarlyArticle",
                "name": paper["title"],
                "datePublished": str(paper["year"]),
                "author": linked([f"#{name.replace(' ', '-')}" for name in people]),
            },
            *({"@id": f"#{name.replace(' ', '-')}", "@type": "Person", "name": name} for name in people),
            *(
                {
                    "@id": address,
                    "@type": "CreativeWork",
                    "name": re.split("[/#]", address)[-1],
                    "description": remarks[address],
                }
                for address in sorted(remarks)
            ),
        ],
    }


def croissant(folder: str, title: str, address: str, files: list[Json], records: list[Json]) -> Json:
    """Croissant: a dataset of this repository; `files` and `records` as its specification has them."""
    version, date = release()
    authors = yaml.safe_load(text("CITATION.cff"))["authors"][0]["name"]
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": title,
        "description": folders()[folder],
        "license": address,
        "version": version,
        "datePublished": date,
        "creator": {"@type": "Organization", "name": authors},
        "citeAs": "this repository, as its CITATION.cff says, and who made the pictures, as the records name them",
        "distribution": files,
        "recordSet": records,
    }


def table(folder: str, name: str) -> Json:
    """A table of a folder as a file, with its hash."""
    digest = hashlib.sha256((ROOT / folder / name).read_bytes()).hexdigest()
    return {"@type": "cr:FileObject", "@id": name, "name": name, "contentUrl": name, "encodingFormat": "text/csv",
            "sha256": digest}  # fmt: skip


def pictures(name: str, includes: str, kind: str = "image/jpeg") -> Json:
    """All files that a pattern fits, in the description's own folder."""
    return {"@type": "cr:FileSet", "@id": name, "name": name, "encodingFormat": kind, "includes": includes}


def field(record: str, name: str, kind: str, source: Json, words: str, joins: Json | None = None) -> Json:
    """A field of a record set, and what it equals in another source of its record set, which joins the two."""
    made = {"@type": "cr:Field", "@id": f"{record}/{name}", "name": name, "description": words, "dataType": kind,
            "source": source}  # fmt: skip
    return {**made, "references": joins} if joins else made


def column(file: str, name: str) -> Json:
    """The source of a field: a column of a table."""
    return {"fileObject": {"@id": file}, "extract": {"column": name}}


def of_file(files: str, what: str, regex: str = "") -> Json:
    """The source of a field: the content, name or path of each file, or the part that a pattern finds in it."""
    source = {"fileSet": {"@id": files}, "extract": {"fileProperty": what}}
    return {**source, "transform": {"regex": regex}} if regex else source


def records(name: str, key: list[str], words: str, fields: list[Json]) -> Json:
    """A record set; the fields `key` together name a record."""
    return {"@type": "cr:RecordSet", "@id": name, "name": name, "description": words,
            "key": [{"@id": f"{name}/{k}"} for k in key], "field": fields}  # fmt: skip


def photographs() -> Json:
    """The photographs with their classes, authors and licence."""
    folder, name, csv = "data/photographs/", "photographs", "photographs.csv"
    said = {
        "id": ("sc:Text", "the published ImageId"),
        "class": ("sc:Integer", "ImageNet's index, from 0"),
        "wnid": ("sc:Text", "WordNet's number of the class"),
        "name": ("sc:Text", "the class in words"),
        "author": ("sc:Text", "who took the photograph; name them where you show it"),
        "address": ("sc:URL", "the photograph's page"),
        "licence": ("sc:URL", "its licence"),
    }
    fields = [field(name, c, kind, column(csv, c), words) for c, (kind, words) in said.items()]
    joined = field(name, "file", "sc:Text", of_file("jpg", "filename", STEM), "id again, as files have it",
                   column(csv, "id"))  # fmt: skip
    picture = field(name, "picture", "sc:ImageObject", of_file("jpg", "content"), "224 x 224 pixels, RGB")
    return croissant(
        folder,
        name,
        "https://creativecommons.org/licenses/by/2.0/",
        [table(folder, csv), pictures("jpg", "*.jpg")],
        [records(name, ["id"], "a photograph a record", [*fields, joined, picture])],
    )


def cutouts() -> Json:
    """The cut-outs: pictures of one thing with their masks, scenes, and what they are made of."""
    folder, files = "data/cutouts/", list[Json]()
    sets = []
    for name, images, masks, words in [
        ("singles", r"ILSVRC2012/val/*/*.JPEG", "ILSVRC2012/masks/*/*.png", "one thing a picture"),
        ("scenes", "VOCdevkit/VOC2007/JPEGImages/*.jpg", "VOCdevkit/VOC2007/SegmentationObject/*.png",
         "two or three classes a picture; a number an object in the mask"),
        ("scenes_coco", "coco/val2014/*.jpg", "", "two or three classes a picture; boxes in coco/annotations"),
        ("occurrences", "occurrences/val2014/*.jpg", "",
         "the same class two or three times; boxes in occurrences/annotations"),
    ]:  # fmt: skip
        jpg, png = f"{name}-pictures", f"{name}-masks"
        fields = [
            field(name, "id", "sc:Text", of_file(jpg, "filename", STEM), "as placements has it"),
            field(name, "picture", "sc:ImageObject", of_file(jpg, "content"), "224 x 224 pixels, RGB"),
        ]
        files.append(pictures(jpg, images))
        if masks:
            files.append(pictures(png, masks, "image/png"))
            fields += [
                field(
                    name,
                    "masked",
                    "sc:Text",
                    of_file(png, "filename", STEM),
                    "id again",
                    of_file(jpg, "filename", STEM),
                ),
                field(
                    name, "mask", "sc:ImageObject", of_file(png, "content"), "which pixels are the thing's"
                ),
            ]
        if name == "singles":
            wnid = of_file(jpg, "fullpath", r"^(?:.*/)?(n\d{8})")
            fields.append(field(name, "wnid", "sc:Text", wnid, "WordNet's number of the thing's class"))
        sets.append(records(name, ["id"], words, fields))
    for name, key, said in [
        ("things", ["file"], {"file": "its picture in things/", "class": "ImageNet's index, from 0",
                            "wnid": "WordNet's number of the class", "name": "the class in words",
                            "stamp": "the stamp of Tux Paint that it was cut from"}),
        ("placements", ["id", "x", "y"], {"id": "the picture", "background": "in backgrounds/", "thing": "in things/",
                              "x": "of its left edge", "y": "of its upper edge", "width": "in pixels",
                              "height": "in pixels"}),
    ]:  # fmt: skip
        csv = f"{name}.csv"
        number = {"class", "x", "y", "width", "height"}
        files.append(table(folder, csv))
        fields = [
            field(name, c, "sc:Integer" if c in number else "sc:Text", column(csv, c), words)
            for c, words in said.items()
        ]
        sets.append(records(name, key, f"the rows of {csv}", fields))
    return croissant(folder, "cutouts", "https://www.gnu.org/licenses/old-licenses/gpl-2.0.html", files, sets)


FILES = {
    "data/photographs/croissant.json": photographs,
    "data/cutouts/croissant.json": cutouts,
    "ro-crate-metadata.json": crate,  # the last: it says where the others are
}


def written(made: Json) -> str:
    """A description as it stands in its file."""
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    for name, made in FILES.items():
        (ROOT / name).write_text(written(made()), "utf-8")
        print(name)


if __name__ == "__main__":
    main()
