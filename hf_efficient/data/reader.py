"""The one reader of files: each split of a dataset from its files, all with one schema."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, DatasetInfo, Features, Value
from datasets.features.features import generate_from_arrow_type
from datasets.table import MemoryMappedTable
from pyarrow import parquet, types

from hf_efficient.data.config import file_format
from hf_efficient.data.delimited import read_csv, read_tsv
from hf_efficient.data.files import DataFile
from hf_efficient.data.json_files import read_json
from hf_efficient.data.lines import has_tabs, read_lines
from hf_efficient.data.schema import cast_column, common_type, plain_array
from hf_efficient.errors import UserError

BATCH_ROWS = 10_000


def read_files(files: Mapping[str, Sequence[DataFile]]) -> DatasetDict:
    """Return the rows of the files of each split; a column has the same type in all of them.

    The rows lie in the cache of `datasets`, and are mapped into memory. The fingerprint of a split depends on its rows
    alone. Its `info.dataset_name` is the name of its file.

    Raises UserError if a file cannot be read, or if a column's values in two files have no common type.
    """
    tables = {
        split: [(file, table) for file in parts for table in READERS[_format_of(file)](file)]
        for split, parts in files.items()
    }
    classes = _share_classes([table for parts in tables.values() for _, table in parts])
    tables = {
        split: [(file, _decode_classes(table, classes)) for file, table in parts] for split, parts in tables.items()
    }
    columns = _find_types([part for parts in tables.values() for part in parts])
    return DatasetDict(
        {
            split: _to_dataset([table for _, table in parts], columns, classes, files[split][0].path.name)
            for split, parts in tables.items()
        }
    )


def _read_parquet(file: DataFile) -> Iterator[pa.Table]:
    with file.open() as content:
        data = content.read()
    try:
        source = parquet.ParquetFile(pa.BufferReader(data))
        repeated = [name for name, count in Counter(source.schema_arrow.names).items() if count > 1]
        if repeated:
            raise file.error(f"the column {repeated[0]!r} exists twice: give every column its own name")
        if not source.metadata.num_rows:
            raise file.error("it has no rows: give a file with rows")
        for batch in source.iter_batches(BATCH_ROWS):
            table = pa.Table.from_batches([batch])
            yield pa.table([plain_array(column) for column in table.columns], _plain_schema(table))
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise file.error(f"it is not a Parquet file, or damaged ({reason}): copy or write it again") from error


def _plain_schema(table: pa.Table) -> pa.Schema:
    fields = [pa.field(name, plain_array(table[name]).type) for name in table.column_names]
    return pa.schema(fields, table.schema.metadata)


def _format_of(file: DataFile) -> str:
    is_lines = file.is_plain_text and ".txt" in [suffix.lower() for suffix in file.path.suffixes[-2:]]
    return "lines" if is_lines and not has_tabs(file) else str(file_format(file.path))


READERS: dict[str, Callable[[DataFile], Iterator[pa.Table]]] = {
    "csv": read_csv,
    "tsv": read_tsv,
    "lines": read_lines,
    "json": read_json,
    "parquet": _read_parquet,
}


def _named_classes(table: pa.Table) -> dict[str, Any]:
    """Return the features of the columns whose ids have names, which `datasets` keeps in the metadata of a file."""
    if b"huggingface" not in (table.schema.metadata or {}):
        return {}
    features = Features.from_arrow_schema(table.schema)
    return {name: each for name, each in features.items() if isinstance(getattr(each, "feature", each), ClassLabel)}


def _share_classes(tables: Sequence[pa.Table]) -> dict[str, Any]:
    """Return the features of class ids on which all files agree: they have the same names, or ids without names."""
    named = [_named_classes(table) for table in tables]
    shared = {}
    for name, feature in {name: each for features in named for name, each in features.items()}.items():
        others = [
            features.get(name) or generate_from_arrow_type(table.schema.field(name).type)
            for table, features in zip(tables, named, strict=True)
            if name in table.column_names
        ]
        if all(other == feature or _holds_integers(other) for other in others):
            shared[name] = feature
    return shared


def _holds_integers(feature: Any) -> bool:
    item = getattr(feature, "feature", feature)
    return isinstance(item, Value) and "int" in item.dtype


def _decode_classes(table: pa.Table, shared: Mapping[str, Any]) -> pa.Table:
    """Return the table with the names of the classes in the columns that are not in `shared`."""
    for name, feature in _named_classes(table).items():
        if name not in shared:
            names = getattr(feature, "feature", feature).names
            values = [_name_of(value, names) for value in table[name].to_pylist()]
            table = table.set_column(table.column_names.index(name), name, [values])
    return table.replace_schema_metadata(None)


def _name_of(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, list):
        return [_name_of(item, names) for item in value]
    return None if value is None or not 0 <= value < len(names) else names[value]


def _find_types(tables: Sequence[tuple[DataFile, pa.Table]]) -> dict[str, pa.DataType]:
    """Return the type of each column in all tables."""
    found: dict[str, pa.DataType] = {}
    first: dict[str, DataFile] = {}
    for file, table in tables:
        for field in table.schema:
            type = common_type(found.get(field.name, pa.null()), field.type)
            if type is None:
                raise file.error(
                    f"the column {field.name!r} holds {_describe(field.type)}, and in {first[field.name].name} "
                    f"{_describe(found[field.name])}: write all files alike"
                )
            found[field.name] = type
            first.setdefault(field.name, file)
    for name, type in found.items():
        try:
            generate_from_arrow_type(type)
        except ValueError as error:
            raise first[name].error(f"the column {name!r} has the type {type}: remove it, or write texts") from error
    return found


def _describe(type: pa.DataType) -> str:
    return "lists" if types.is_list(type) else "objects" if types.is_struct(type) else "single values"


def _to_dataset(
    tables: Sequence[pa.Table], columns: Mapping[str, pa.DataType], classes: Mapping[str, Any], name: str
) -> Dataset:
    present = {column for table in tables for column in table.column_names}
    features = Features.from_arrow_schema(pa.schema([each for each in columns.items() if each[0] in present]))
    features.update({column: feature for column, feature in classes.items() if column in present})
    schema = features.arrow_schema
    path, digest = _write_to_cache([_with_schema(table, schema) for table in tables], schema)
    return Dataset(
        MemoryMappedTable.from_file(str(path)), DatasetInfo(features=features, dataset_name=name), fingerprint=digest
    )


def _with_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    missing = pa.nulls(len(table))
    columns = [
        cast_column(table[field.name] if field.name in table.column_names else pa.chunked_array([missing]), field.type)
        for field in schema
    ]
    return pa.table(columns, schema)


def _write_to_cache(tables: Sequence[pa.Table], schema: pa.Schema) -> tuple[Path, str]:
    """Write the tables into the cache of `datasets`, in a folder named by their content; return the file and name."""
    directory = Path(datasets.config.HF_DATASETS_CACHE) / "files"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory) as temporary:
            written = Path(temporary) / "rows.arrow"
            with pa.OSFile(str(written), "wb") as sink, pa.ipc.new_stream(sink, schema) as stream:
                for table in tables:
                    stream.write_table(table)
            with pa.memory_map(str(written)) as content:
                digest = hashlib.sha256(content.read_buffer()).hexdigest()[:16]
            path = directory / digest / "rows.arrow"
            path.parent.mkdir(exist_ok=True)
            if not path.is_file():
                os.replace(written, path)
    except OSError as error:
        raise UserError(
            f"the rows cannot be written into {str(directory)!r} ({error.strerror or error}): give another folder by "
            "the environment variable HF_DATASETS_CACHE"
        ) from error
    return path, digest
