"""The flags of the commands that compress: both stages of their parsing, the configuration file, the help."""

import dataclasses

import pytest
import torch
from transformers import HfArgumentParser, Seq2SeqTrainingArguments

from hf_efficient.commands import training_flags
from hf_efficient.commands.arguments import ADVANCED, CONFIGS, DEFAULTS, MEASUREMENT_FIELDS, NO_TRAINING, parse_flags
from hf_efficient.commands.training_arguments import build_training_arguments
from hf_efficient.commands.training_flags import HUB_HELP, TRAINING_HELP, read_training_fields
from hf_efficient.errors import UserError

TRAINING_FIELDS = {field.name: field for field in dataclasses.fields(Seq2SeqTrainingArguments) if field.init}


def parse(*argv, **options):
    required = ("--model_name_or_path", "bert", "--output_dir", "out")
    return parse_flags([*required, *argv], "compress", "Compress.", "example", **options)


def help_of(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        parse(*argv)
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_names_in_the_source_of_transformers_are_the_fields_of_its_class():
    assert read_training_fields().keys() == TRAINING_FIELDS.keys()


def test_defaults_in_the_source_are_those_of_the_class():
    for name, default in read_training_fields().items():
        if default is not None:
            assert default == TRAINING_FIELDS[name].default


def test_fields_are_read_from_the_class_if_the_source_has_another_layout(monkeypatch):
    monkeypatch.setattr(training_flags, "_CLASSES", (("elsewhere.py", "TrainingArguments"),))
    assert read_training_fields().keys() == TRAINING_FIELDS.keys()


def test_every_flag_has_one_meaning():
    names = [field.name for config in CONFIGS.values() for field in dataclasses.fields(config)]
    assert len(names) == len(set(names))
    assert not set(names) & TRAINING_FIELDS.keys()
    assert set(names) >= ADVANCED | set(MEASUREMENT_FIELDS)
    assert TRAINING_FIELDS.keys() >= TRAINING_HELP.keys() | HUB_HELP.keys()


@pytest.mark.parametrize("group", CONFIGS)
def test_values_are_read_as_the_parser_of_transformers_reads_them(group):
    config = CONFIGS[group]
    argv = {
        "model": ["--teacher_name_or_path", "t1", "t2", "--distil", "True", "--trust_remote_code"],
        "data": ["--train_file", __file__, "--max_length", "64"],
        "pruning": ["--heads", "0.25", "--weights", "0.5", "--no_recovery", "--vocabulary", "no", "--rounds=2"],
        "distillation": ["--temperature", "3", "--logits-weight", "1", "--cache_top_k", "5", "--cache_teacher"],
        "quantization": ["--scheme", "codebook", "--bits", "3", "--no-quantize-embeddings", "--compile", "False"],
        "export": ["--export", "onnx", "openvino"],
    }[group]
    if group == "data":  # a file that exists, of a suffix that no reader is asked for here
        argv = argv[2:]
    model = ["--model_name_or_path", "bert"] if group == "model" else []
    (expected,) = HfArgumentParser(config, allow_abbrev=False).parse_args_into_dataclasses([*model, *argv])
    if group == "distillation":
        expected = dataclasses.replace(expected, stop_when_flat=DEFAULTS["stop_when_flat"])
    assert getattr(parse(*argv), group) == expected


def test_without_a_scheme_nothing_is_quantized():
    assert parse().quantization.scheme is None


def test_flags_of_training_arguments_reach_their_own_parser():
    flags = parse("--learning_rate", "1e-3", "--max-steps", "-1", "--no_average_tokens_across_devices", "--bf16")
    flags = dataclasses.replace(flags, training={**flags.training, "report_to": ["--report_to=none"]})
    args = build_training_arguments(flags.training)
    assert (args.learning_rate, args.max_steps, args.bf16) == (1e-3, -1, True)
    assert args.average_tokens_across_devices is False
    assert args.output_dir == "out"


def test_flags_that_a_command_sets_win():
    flags = parse("--num_train_epochs", "3", "--distil", "True", fixed=NO_TRAINING)
    assert flags.training["num_train_epochs"] == ["--num_train_epochs=0"]
    assert flags.model.distil is False


@pytest.mark.parametrize(("given", "expected"), [([], not torch.accelerator.is_available()), (["--use-cpu"], True)])
def test_the_cpu_is_used_without_an_accelerator(given, expected):
    flags = parse("--report_to", "none", *given)
    assert build_training_arguments(flags.training).use_cpu is expected


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--learning_rat", "1"], "unknown flag --learning_rat: did you mean --learning_rate?"),
        (["--target-speed=2"], "unknown flag --target-speed: did you mean --target_speedup, "),
        (["--unheard_of"], "unknown flag --unheard_of: hf-efficient compress --help lists the flags"),
        (
            ["--temperatur", "1", "--head", "1"],
            "?; unknown flag --head: did you mean --heads",
        ),
        (["--rounds", "1", "other"], "unexpected argument 'other': it follows no flag"),
        (["--rounds", "many"], "argument --rounds: invalid int value: 'many'"),
        (["--compile", "maybe"], "argument --compile: 'maybe' is neither True nor False"),
        (["--temperature", "-1"], "temperature=-1.0 is out of range: give 0.01 to 100"),
        (["--model_name_or_path", "a/b/c"], "model_name_or_path='a/b/c' does not exist"),
        (["--teacher_name_or_path", "bert", "./missing"], "teacher_name_or_path='./missing' does not exist"),
        (["--model_name_or_path", __file__], "is a file: give the directory of the model"),
        (["--model_name_or_path", "."], "model_name_or_path='.' contains no config.json"),
        (["--config"], "argument --config: expected one argument"),
    ],
    ids=str,
)
def test_refused_flags_get_a_sentence(tmp_path, monkeypatch, argv, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refusal:
        parse(*argv)
    assert sentence in str(refusal.value)


@pytest.mark.parametrize("missing", ["--model_name_or_path", "--output_dir"])
def test_required_flags_are_named(missing):
    given = {"--model_name_or_path": "bert", "--output_dir": "out"}
    del given[missing]
    with pytest.raises(UserError, match=f"{missing} is required"):
        parse_flags([part for pair in given.items() for part in pair], "compress", "Compress.", "example")


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--learning_rate", "fast"], "argument --learning_rate/--learning-rate: invalid float value: 'fast'"),
        (["--lr_scheduler_type", "sideways"], "sideways"),
        (["--report_to", "carrier_pigeon"], "report_to='carrier_pigeon' is unknown or its package is not installed"),
        (["--load_best_model_at_end", "True", "--eval_strategy", "no"], "load_best_model_at_end"),
        (["--fsdp", "full_shard", "--fsdp_config", "missing.json"], "missing.json"),
    ],
    ids=str,
)
def test_values_that_training_arguments_refuse_are_errors_of_the_user(argv, sentence):
    flags = parse("--report_to", "none", *argv)
    with pytest.raises(UserError) as refusal:
        build_training_arguments(flags.training)
    assert sentence in str(refusal.value)


# ---- the configuration file ----------------------------------------------------------------------------------------


def test_flags_win_over_the_configuration_file(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "target_speedup: 3\ntemperature: 4\nbf16: false\nscheme: null\nexport: [onnx]\nteacher_name_or_path: []\n"
        "lr_scheduler_kwargs: {num_cycles: 2}\nmax_steps: -1\n"
    )
    flags = parse("--target_speedup", "2", "--config", str(recipe))
    assert (flags.pruning.target_speedup, flags.distillation.temperature) == (2.0, 4.0)
    assert flags.quantization.scheme is None
    assert flags.export.export == ["onnx"]
    assert flags.model.teacher_name_or_path is None
    args = build_training_arguments({**flags.training, "report_to": ["--report_to=none"]})
    assert (args.bf16, args.lr_scheduler_kwargs, args.max_steps) == (False, {"num_cycles": 2}, -1)


# ---- the help ------------------------------------------------------------------------------------------------------


def test_help_takes_at_most_120_lines_of_120_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    lines = help_of(capsys, "--help").splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 120


def test_help_shows_groups_defaults_and_an_example(capsys):
    text = help_of(capsys, "--help")
    titles = [
        "Model and data:",
        "Pruning:",
        "Distillation:",
        "Quantization:",
        "Export and measurement:",
        "Training",
        "Hub:",
    ]
    positions = [text.index(f"\n{title}") for title in titles]
    assert positions == sorted(positions)
    assert "soft labels [0.5]" in " ".join(text.split())
    assert "Example:\n  example" in text
    for config in CONFIGS.values():
        for field in dataclasses.fields(config):
            assert f"--{field.name}" in text
    assert "--push_to_hub" in text
    assert "--adam_beta1" not in text
    assert "--target-speedup" not in text


def test_help_of_a_command_shows_the_groups_that_concern_it(capsys):
    with pytest.raises(SystemExit):
        parse_flags(["--help"], "prune", "Prune.", "example", ("model", "pruning"))
    text = capsys.readouterr().out
    assert "--target_speedup" in text
    assert "Distillation" not in text
    assert "--scheme" not in text
    assert "--learning_rate" not in text


def test_full_help_describes_every_flag(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    text = help_of(capsys, "--help-all")
    for name in (*TRAINING_FIELDS, *ADVANCED):
        assert f"--{name}" in text
    assert "also --" not in text
    assert "All of TrainingArguments:" in text
