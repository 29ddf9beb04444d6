"""The `data.labels:` section: where the labels are, in which format, and what they are called."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, PlainSerializer, WithJsonSchema

from pipeline.spec.fields import FilePath, Number, Section

Delimiter = Literal["comma", "tab", "semicolon", "pipe", "space"]


def _cell_text(value: Any) -> Any:
    """What a cell of a table holds, as written: true, 1, -1.0 or text; null is an empty cell."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, int | float) else value


def _as_tuple(value: Any) -> Any:
    """One value is a list of one."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _cell_texts(value: Any) -> Any:
    return tuple(_cell_text(item) for item in _as_tuple(value))


def _pairs(value: Any) -> Any:
    return tuple(value.items()) if isinstance(value, dict) else value


# words, written as a list or as one word
Words = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
CellValues = Annotated[tuple[str, ...], BeforeValidator(_cell_texts)]
# a mapping, kept as pairs: a section is hashable
Renames = Annotated[
    tuple[tuple[str, str], ...],
    BeforeValidator(_pairs),
    PlainSerializer(dict),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "string"}}),
]


class LabelNames(Section):
    """Which of the labels that were read count, and under which name. Names are those of the file."""

    only: Words | None = None
    """Only these labels, in this order: names or patterns such as `dog*`. null: all."""
    except_: Words = Field(default=(), alias="except")
    """Labels to leave out: names or patterns."""
    rename: Renames = ()
    """Old name to new name. Labels that are given one name are joined: an image has it if it has any of them."""
    none: Words = ()
    """Names that mean "no label", e.g. `No Finding`: they are no labels, and never count as one."""
    empty: Literal["refuse", "drop"] = "refuse"
    """What happens to labels that no image has: they are all named and refused, or dropped."""


class FileLabels(LabelNames):
    """Labels that are read from files."""

    source: FilePath | None = None
    """The folder or archive that holds the label files. null: the one that holds the images."""


class IdListLabels(FileLabels):
    """One text file per label, holding the ids (or file names) of the images that have it."""

    format: Literal["id_lists"] = "id_lists"
    files: str = "annotations/{label}.txt"
    """The files' name pattern, with `{label}` once. It may name the ends of a path only."""


class VectorLabels(FileLabels):
    """One text file per label with a 0 or 1 per image, and one that lists the images, as NUS-WIDE has them."""

    format: Literal["vectors"]
    files: str
    """The files' name pattern, with `{label}` once, e.g. `AllLabels/Labels_{label}.txt`."""
    order: str
    """The file that names the images, one a line, in the order of the values."""


class VocLabels(FileLabels):
    """Pascal VOC's ImageSets/Main: one text file per label, with an id and -1, 0 or 1 in a line."""

    format: Literal["voc"]
    files: str = "ImageSets/Main/{label}_trainval.txt"
    """The files' name pattern, with `{label}` once."""
    difficult: Literal["absent", "present"] = "absent"
    """What 0 means: only objects that VOC marks as difficult are in the image."""


class TableLabels(FileLabels):
    """Labels in a text table: a row per image, or per image and label."""

    file: str
    """The table's name, or the end of its path."""
    id_column: str | None = None
    """The column of ids, file names or paths. null: the first column that has a name."""
    delimiter: Delimiter | None = None
    """What stands between two columns. null: a tab in a .tsv, else a comma."""
    header: bool | Words = True
    """Whether the first line names the columns. false: columns are called 1, 2, ... A list names them."""


class OneHotLabels(TableLabels):
    """A CSV with a column of ids and one 0/1 column per label."""

    format: Literal["onehot_csv"]
    columns: Words | None = None
    """The columns that are labels: names or patterns. null: all but the ids and those of `ignore`."""
    ignore: Words = ()
    """Columns that are no labels, e.g. `is_train` or `meta_*`: names or patterns."""
    true: CellValues = ("1", "true")
    """The cells that mean the image has the label; numbers are compared as numbers."""
    false: CellValues = ("0", "false")
    """The cells that mean it has not, e.g. `[0, -1, null]`; null is an empty cell. Others are refused."""


class ListColumnLabels(TableLabels):
    """A CSV with a column of ids and one or more that list labels, e.g. `dog tree`, or `["dog", "tree"]`."""

    format: Literal["list_csv"]
    labels_column: Words | None = None
    """The column that lists an image's labels, or several: names or patterns. null: the second one."""
    separator: Annotated[str, Field(min_length=1)] = " "
    """What stands between two labels in a cell. Lists as Python or JSON writes them need none."""
    confidence_column: str | None = None
    """A column that says how sure a label is. null: `Confidence`, as Open Images has it, where there is one."""
    min_confidence: Number | None = None
    """From which confidence on the image has the label. null: 1 has it and 0 has not; others are refused."""


class JsonLinesLabels(FileLabels):
    """A JSON object a line, as Hugging Face's metadata.jsonl has them: an image and the list of its labels."""

    format: Literal["jsonl"]
    file: str = "metadata.jsonl"
    """The file's name, or the end of its path. File names in it may be relative to its folder."""
    id_key: str = "file_name"
    """The key of the file name or id."""
    labels_key: str = "labels"
    """The key of the list of labels; `objects.categories` is a key in a key."""


class CocoLabels(FileLabels):
    """COCO's `instances_*.json`: an image has a label if any object of that category is in it."""

    format: Literal["coco"]
    file: str
    """The JSON file's name, or the end of its path."""


class CelebaLabels(FileLabels):
    """CelebA's `list_attr_celeba.txt`: a count, a line of label names, and a file name with -1 or 1 for each."""

    format: Literal["celeba"]
    file: str = "list_attr_celeba.txt"
    """The file's name, or the end of its path."""


class FolderLabels(LabelNames):
    """A folder per label. Copies of one picture in several folders are one image with several labels."""

    format: Literal["folders"]
    level: Annotated[int, Field(ge=1)] = 1
    """Which folder above the image is its label: 1 is the one it lies in."""


LabelsSpec = Annotated[
    IdListLabels | OneHotLabels | ListColumnLabels | JsonLinesLabels | CocoLabels
    | VocLabels | CelebaLabels | VectorLabels | FolderLabels,
    Discriminator("format"),
]  # fmt: skip
