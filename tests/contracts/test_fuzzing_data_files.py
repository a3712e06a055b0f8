"""Random and mutated data files are read, or refused with a sentence, within a second of computing."""

import gzip
import io
import json
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_efficient.data.config import DataConfig
from hf_efficient.data.loading import load_splits
from hf_efficient.errors import UserError

ROWS = [{"sentence": f"a film, number {index}", "label": index % 2} for index in range(4)]


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue()


FILES = {
    "csv": "sentence,label\n" + "".join(f'"{row["sentence"]}",{row["label"]}\n' for row in ROWS),
    "tsv": "sentence\tlabel\n" + "".join(f"{row['sentence']}\t{row['label']}\n" for row in ROWS),
    "json": json.dumps(ROWS),
    "jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
}
CONTENTS = {name: text.encode() for name, text in FILES.items()} | {"parquet": parquet()}
CONTENTS["csv.gz"] = gzip.compress(CONTENTS["csv"], mtime=0)


@pytest.mark.parametrize("suffix", CONTENTS)
@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_data_file(suffix, data, tmp_path_factory):
    content = bytearray(CONTENTS[suffix])
    if data.draw(st.booleans()):
        for _ in range(data.draw(st.integers(1, 4))):
            start = data.draw(st.integers(0, len(content)))
            end = start + data.draw(st.integers(0, 8))
            content[start:end] = data.draw(st.binary(max_size=8))
    else:
        content = bytearray(data.draw(st.binary(max_size=200)))
    file = tmp_path_factory.mktemp("fuzz") / f"rows.{suffix}"
    file.write_bytes(content)
    start_seconds = time.process_time()
    try:
        config = DataConfig(train_file=str(file), validation_file=str(file))
        config.check_files()
        rows = sum(len(split) for split in load_splits(config, seed=0).values())
        message = "no rows" if rows < 1 else ""
    except UserError as error:
        rows, message = 0, str(error)
    assert rows or message not in ("", "no rows")
    assert time.process_time() - start_seconds < 1
