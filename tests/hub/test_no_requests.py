"""A folder that exists is never a name on the Hub: what runs on local files asks for nothing."""

import shutil

from clients import RUN, run
from reviews import flags, write_reviews


def test_local_model_without_a_card_is_not_asked_for_on_the_hub(hub, environment, review_model_dir, tmp_path):
    shutil.copytree(review_model_dir, tmp_path / "demo" / "untrained")
    write_reviews(tmp_path / "train.csv", 32)
    write_reviews(tmp_path / "dev.csv", 8, shift=32)
    arguments = flags(tmp_path, model_name_or_path="demo/untrained", neurons=0.5, target_speedup=None, epochs=None)
    hub.seen.clear()
    result = run(environment(), ["-c", RUN, "compress", *arguments, "--scheme", "int8_dynamic"], tmp_path)
    assert result.returncode == 0, result.stderr
    assert hub.seen == []
    written = (tmp_path / "out" / "config.json").read_text() + (tmp_path / "out" / "README.md").read_text()
    assert "demo/untrained" not in written
    assert str(tmp_path) not in written + (tmp_path / "out" / "compression_report.json").read_text()
