import itertools
import shutil

import pytest
from killing import killed_at

from hf_efficient.files import replacing as module
from hf_efficient.files.replacing import NEW_MODEL_NAME, finish_replacing, remove, replacing, replacing_model


def write_model(folder, text, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json", *(names or ("model.safetensors",))):
        (folder / name).write_text(text)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["report.json", "onnx"])
def test_an_error_leaves_what_was_there(tmp_path, name):
    def write(text, error=None):
        with replacing(tmp_path / name) as temporary:
            file = temporary if "." in name else temporary / "file"
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
            if error:
                raise error

    write("old")
    before = contents(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        write("new", KeyboardInterrupt)
    assert contents(tmp_path) == before
    write("new")
    assert set(contents(tmp_path).values()) == {"new"}
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_that_cannot_be_moved_is_given_its_name_back(tmp_path, monkeypatch):
    write_model(tmp_path / "onnx", "old")
    rename = module.Path.rename

    def fail(path, target):
        if path.name == "onnx.partial":
            raise OSError("no")
        return rename(path, target)

    monkeypatch.setattr(module.Path, "rename", fail)
    with pytest.raises(OSError, match="no"), replacing(tmp_path / "onnx") as temporary:
        write_model(temporary, "new")
    assert set(contents(tmp_path / "onnx").values()) == {"old"}


def test_links_are_replaced_and_not_followed(tmp_path):
    write_model(tmp_path / "elsewhere", "theirs")
    (tmp_path / "out").mkdir()
    for name in ("model.safetensors", "config.json"):
        (tmp_path / "out" / name).symlink_to(tmp_path / "elsewhere" / name)
    (tmp_path / "out" / "onnx").symlink_to(tmp_path / "elsewhere")
    with replacing_model(tmp_path / "out") as folder:
        write_model(folder, "ours")
    with replacing(tmp_path / "out" / "onnx") as folder:
        write_model(folder, "ours")
    assert set(contents(tmp_path / "elsewhere").values()) == {"theirs"}
    assert set(contents(tmp_path / "out").values()) == {"ours"}
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


def test_weights_of_the_model_before_are_removed_and_other_files_stay(tmp_path):
    write_model(
        tmp_path, "old", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "model_b.safetensors"
    )
    with replacing_model(tmp_path) as folder:
        write_model(folder, "new")
    assert {name for name, text in contents(tmp_path).items() if text == "old"} == {"model_b.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == {
        *("config.json", "tokenizer.json", "model.safetensors", "model_b.safetensors")
    }


def is_whole(folder, text):
    return set(contents(folder).values()) == {text} and {"config.json", "model.safetensors"} <= contents(folder).keys()


@pytest.mark.parametrize("has_links", [True, False], ids=["links", "copies"])
def test_a_kill_between_any_two_file_operations_leaves_the_old_or_the_new_model(tmp_path, has_links):
    out, states = tmp_path / "out", set()

    def save():
        with replacing_model(out) as folder:
            write_model(folder, "new")

    for operation in itertools.count():
        write_model(out, "old")
        was_killed = killed_at(operation, out, save, has_links)
        has_config = (out / "config.json").exists()
        found = {path.read_text() for path in out.iterdir() if path.is_file() and "partial" not in path.name}
        assert len(found) == 1 if has_config else is_whole(out / NEW_MODEL_NAME, "new")
        states.add(found.pop() if has_config else "to be finished")
        is_new = (out / NEW_MODEL_NAME).exists() or (out / "config.json").read_text() == "new"
        finish_replacing(out)
        assert is_whole(out, "new" if is_new else "old")
        assert {path.name for path in out.iterdir()} == {"config.json", "tokenizer.json", "model.safetensors"}
        shutil.rmtree(out)
        if not was_killed:
            break
    assert states == {"old", "to be finished", "new"}


def test_nothing_is_removed_where_there_is_nothing(tmp_path):
    remove(tmp_path / "absent")
    finish_replacing(tmp_path)
    assert not list(tmp_path.iterdir())
