"""The file of `--config`: what its values mean, and the sentences that refuse it."""

import pytest

from hf_efficient.commands.arguments import parse_flags
from hf_efficient.commands.training_arguments import build_training_arguments
from hf_efficient.errors import UserError


def parse(tmp_path, text, name="recipe.yaml"):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    required = ["--model_name_or_path", "bert", "--output_dir", "out", "--report_to", "none"]
    return parse_flags([*required, "--config", str(tmp_path / name)], "compress", "", "")


@pytest.mark.parametrize(
    ("text", "group", "expected"),
    [
        ("source_lang: no", "data", {"source_lang": "no"}),
        ("source_lang: on\ntarget_lang: off", "data", {"source_lang": "on", "target_lang": "off"}),
        ("label_column: yes", "data", {"label_column": "yes"}),
        ("dataset_title: 2020-01-01", "data", {"dataset_title": "2020-01-01"}),
        ("dataset_title: 007", "data", {"dataset_title": "007"}),
        ("dataset_title: 1.50", "data", {"dataset_title": "1.50"}),
        ("dataset_title: 1e-5", "data", {"dataset_title": "1e-5"}),
        ("dataset_title: 12:30:00", "data", {"dataset_title": "12:30:00"}),
        ("dataset_title: 0x10", "data", {"dataset_title": "0x10"}),
        ("dataset_title: =", "data", {"dataset_title": "="}),
        ("source_prefix: 'translate: '", "data", {"source_prefix": "translate: "}),
        ("text_column: null", "data", {"text_column": None}),
        ("text_column: ~", "data", {"text_column": None}),
        ("text_column:", "data", {"text_column": None}),
        ("text_column: 'null'", "data", {"text_column": "null"}),
        ("max_length: null", "data", {"max_length": 128}),
        ("max_length: {}", "data", {"max_length": 128}),
        ("max-length: 64", "data", {"max_length": 64}),
        ("n_m: 2:4", "pruning", {"n_m": "2:4"}),
        ("heads: 0.50", "pruning", {"heads": "0.50"}),
        ("target_speedup: 2\nrounds: '3'", "pruning", {"target_speedup": 2.0, "rounds": 3}),
        ("recovery: off\nvocabulary: on", "pruning", {"recovery": False, "vocabulary": True}),
        ("recovery: No\nvocabulary: y", "pruning", {"recovery": False, "vocabulary": True}),
        ("temperature: 2e0", "distillation", {"temperature": 2.0}),
        ("student_layers: 3", "model", {"student_layers": "3"}),
        ("student_layers: 0,2,5", "model", {"student_layers": "0,2,5"}),
        ("teacher_name_or_path: [no, on]", "model", {"teacher_name_or_path": ["no", "on"]}),
        ("teacher_name_or_path: []", "model", {"teacher_name_or_path": None}),
        ("export: onnx", "export", {"export": ["onnx"]}),
        ("export:\n- onnx\n- openvino", "export", {"export": ["onnx", "openvino"]}),
        ("\ufeffrounds: 2\r\n", "pruning", {"rounds": 2}),
    ],
)
def test_values_mean_what_their_flag_takes(tmp_path, text, group, expected):
    values = vars(getattr(parse(tmp_path, text), group))
    assert {name: values[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning_rate: 1e-5", {"learning_rate": 1e-5}),
        ("learning_rate: '1e-5'\nmax_steps: -1", {"learning_rate": 1e-5, "max_steps": -1}),
        ("save_strategy: no\neval_strategy: 'no'", {"save_strategy": "no", "eval_strategy": "no"}),
        ("batch_eval_metrics: on", {"batch_eval_metrics": True}),
        ("remove_unused_columns: Off", {"remove_unused_columns": False}),
        ("disable_tqdm: yes", {"disable_tqdm": True}),
        ("run_name: off", {"run_name": "off"}),
        ("lr_scheduler_kwargs: {}", {"lr_scheduler_kwargs": None}),
        ("lr_scheduler_kwargs: []", {"lr_scheduler_kwargs": None}),
        ("lr_scheduler_kwargs: null", {"lr_scheduler_kwargs": None}),
        ("lr_scheduler_kwargs: {last: no}", {"lr_scheduler_kwargs": {"last": False}}),
        (
            "lr_scheduler_kwargs: {a: 1e-5, b: 'no', c: [1, x], d: null, e: 1:30}",
            {"lr_scheduler_kwargs": {"a": 1e-5, "b": "no", "c": [1, "x"], "d": None, "e": "1:30"}},
        ),
    ],
)
def test_values_of_training_arguments(tmp_path, text, expected):
    args = build_training_arguments(parse(tmp_path, text).training)
    assert {name: getattr(args, name) for name in expected} == expected


def test_json_holds_the_same_keys(tmp_path):
    text = '{\n\t"rounds": 2, "text_column": "null", "heads": null, "recovery": false, "source_lang": "no"}'
    flags = parse(tmp_path, text, "recipe.json")
    assert (flags.pruning.rounds, flags.pruning.heads, flags.pruning.recovery) == (2, None, False)
    assert (flags.data.text_column, flags.data.source_lang) == ("null", "no")


NO_KEYS = "holds no keys: write keys and values, such as `target_speedup: 2`"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        *((text, NO_KEYS) for text in ("", "null", "~", "{}", "[]", "- a\n- b", "5", "text", "# nothing\n")),
        ("rounds: 1\na: [1\n", "line 3: it is not YAML: expected ',' or ']'"),
        ("rounds: 1\n  heads: 2", "line 2: it is not YAML: mapping values are not allowed here"),
        ("rounds: 1\n\theads: 2", "line 2: it is not YAML: found character"),
        ("rounds: 'a", "line 1: it is not YAML"),
        ("rounds: @a", "line 1: it is not YAML"),
        ("rounds: *a", "line 1: it is not YAML: found undefined alias 'a'"),
        ("rounds: 1\n---\nrounds: 2", "line 2: it is not YAML"),
        ("rounds: \0", "it is not YAML: special characters are not allowed"),
        (b"rounds: \xff", "is not UTF-8 (byte 9): save the file as UTF-8"),
        ("rounds: 2\ntarget_speed: 2", "line 2: unknown key 'target_speed': did you mean target_speedup"),
        ("--rounds: 2", "line 1: unknown key '--rounds': did you mean rounds"),
        ("learning_rte: 2", "line 1: unknown key 'learning_rte': did you mean learning_rate"),
        ("no_recovery: true", "line 1: unknown key 'no_recovery': did you mean recovery?"),
        ("unheard_of: 1", "line 1: unknown key 'unheard_of': keys are the flags that --help-all lists"),
        ("pruning:\n  rounds: 2", "line 1: unknown key 'pruning': the keys are not in groups"),
        ("rounds: 2\nrounds: 3", "line 2: the key 'rounds' is in line 1 already: give it once"),
        ("? [rounds]\n: 2", "line 1: a key is no name"),
        ("export: [[onnx]]", "line 1: a list holds single values only"),
        ("export: [--rounds, onnx]", "line 1: '--rounds' begins with a dash"),
        ("lr_scheduler_kwargs: &a {b: *a}", "line 1: the value contains itself"),
        ("rounds: many", "argument --rounds: invalid int value: 'many'"),
        ("compile: maybe", "argument --compile: 'maybe' is neither True nor False"),
    ],
)
def test_a_file_that_cannot_be_used_gets_a_sentence(tmp_path, text, sentence):
    with pytest.raises(UserError) as refusal:
        parse(tmp_path, text)
    assert sentence in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "line 1: it is not JSON"),
        ('{"rounds": 2,\n}', "it is not JSON"),
        ("[]", NO_KEYS),
        ("{}", NO_KEYS),
        ("null", NO_KEYS),
        ('{"rounds": 1, "rounds": 2}', "the key 'rounds' of the configuration file is given twice"),
        ('{\n  "rounds": 1,\n  "round": 2\n}', "line 3: unknown key 'round': did you mean rounds"),
    ],
)
def test_json_that_cannot_be_used_gets_a_sentence(tmp_path, text, sentence):
    with pytest.raises(UserError) as refusal:
        parse(tmp_path, text, "recipe.json")
    assert sentence in str(refusal.value)


def test_a_directory_or_a_missing_file_is_no_recipe(tmp_path):
    for path, sentence in ((tmp_path, "cannot be read: Is a directory"), (tmp_path / "none.yaml", "does not exist")):
        with pytest.raises(UserError, match=sentence):
            parse_flags(["--config", str(path)], "compress", "", "")


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--lr_scheduler_kwargs={", "lr_scheduler_kwargs='{' is not JSON"),
        ("--lr_scheduler_kwargs=[]", "lr_scheduler_kwargs='[]' is no JSON object"),
        ("--gradient_checkpointing_kwargs=5", "gradient_checkpointing_kwargs='5' is no JSON object"),
        ("--fsdp_config={", "fsdp_config='{' is not JSON"),
        ('--accelerator_config={"unheard_of": 1}', "unheard_of"),
    ],
)
def test_keyword_arguments_that_are_no_json_get_a_sentence(argument, sentence):
    name = argument.partition("=")[0][2:]
    with pytest.raises(UserError) as refusal:
        build_training_arguments({"report_to": ["--report_to=none"], name: [argument]})
    assert sentence in str(refusal.value)
