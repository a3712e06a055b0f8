from hf_efficient.data.config import DataConfig
from hf_efficient.data.loading import load_splits
from hf_efficient.data.rows import describe_row


def test_rows_are_counted_as_in_the_file_wherever_they_are_used(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"text {row},0\n" for row in range(1, 41)))
    splits = load_splits(DataConfig(train_file=str(tmp_path / "a.csv"), max_train_samples=20), seed=0)
    for name, title in (("train", "training"), ("evaluation", "evaluation")):
        for index, text in enumerate(splits[name]["text"]):
            expected = f"row {text.removeprefix('text ')} of the {title} data, a.csv ({text!r})"
            assert describe_row(splits[name], index, name) == expected
