import pytest

from hf_efficient.commands.arguments import parse_flags
from hf_efficient.commands.config import ModelConfig
from hf_efficient.commands.job import build_job_config
from hf_efficient.errors import UserError


def parse_config(*argv):
    required = ["--model_name_or_path", "bert", "--output_dir", "out", "--report_to", "none"]
    return build_job_config(parse_flags([*required, *argv], "compress", "", ""))


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], False),
        (["--target_speedup", "2"], True),
        (["--target_speedup", "2", "--distil", "False"], False),
        (["--target_speedup", "2", "--before_training"], False),
        (["--target_speedup", "2", "--before_training", "--teacher_name_or_path", "bert"], True),
        (["--scheme", "int8_dynamic"], False),
        (["--scheme", "int8_dynamic", "--aware"], True),
        (["--teacher_name_or_path", "bert"], True),
        (["--student_layers", "1"], True),
        (["--distil"], True),
    ],
    ids=str,
)
def test_distillation_is_used_if_there_is_something_to_recover(argv, expected):
    assert parse_config(*argv).uses_distillation is expected


@pytest.mark.parametrize(
    ("argv", "compresses", "needs_dataset"),
    [
        ([], False, True),
        (["--num_train_epochs", "0"], False, False),
        (["--scheme", "int8_dynamic"], True, False),
        (["--scheme", "int8_dynamic", "--aware"], True, True),
        (["--vocabulary", "--num_train_epochs", "0"], True, True),
        (["--layers", "0.5", "--num_train_epochs", "0", "--distil", "False"], True, True),
        (["--distil"], True, True),
    ],
    ids=str,
)
def test_dataset_is_needed_to_train_and_to_prune(argv, compresses, needs_dataset):
    config = parse_config(*argv)
    assert (config.compresses, config.needs_dataset) == (compresses, needs_dataset)


def test_student_is_defined_once_and_learns_from_a_teacher():
    with pytest.raises(UserError, match="each define the student: give one"):
        ModelConfig("bert", student_layers="1", student_config="hidden_size=16")
    with pytest.raises(UserError, match="learns from a teacher: leave out --distil False"):
        ModelConfig("bert", student_layers="1", distil=False)
