"""FSDP without processes: what is refused, and the complete model before and after. See also test_two_processes."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from trainers import classifier, t5

from hf_efficient.errors import UserError
from hf_efficient.trainer.fsdp import FSDPSession, check_fsdp_config, gather_full_model, uses_fsdp


def fake_accelerator(version=2, state_dict_type="StateDictType.FULL_STATE_DICT"):
    plugin = SimpleNamespace(fsdp_version=version, state_dict_type=state_dict_type)
    return SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))


def test_fsdp_is_not_used_unless_it_was_requested():
    accelerator = Accelerator(cpu=True)
    assert not uses_fsdp(accelerator)
    check_fsdp_config(accelerator, torch.nn.Linear(2, 2))
    assert uses_fsdp(fake_accelerator())


@pytest.mark.parametrize(
    ("accelerator", "model", "message"),
    [
        (fake_accelerator(version=1), classifier(), r"FSDP 1 hides .*: give fsdp_config=\{'version': 2\}"),
        (
            fake_accelerator(state_dict_type="StateDictType.SHARDED_STATE_DICT"),
            classifier(),
            r"give fsdp_config=\{'state_dict_type': 'FULL_STATE_DICT'\}",
        ),
        (fake_accelerator(), torch.nn.Linear(2, 2), "for a PreTrainedModel only, not for Linear: leave fsdp out"),
        (fake_accelerator(), t5(), "T5ForConditionalGeneration ties weights of several modules, .*: leave fsdp out"),
    ],
    ids=["version 1", "sharded checkpoints", "another class", "tied weights"],
)
def test_unsupported_configuration_is_refused(accelerator, model, message):
    with pytest.raises(UserError, match=message):
        check_fsdp_config(accelerator, model)


def test_supported_configuration_is_accepted():
    check_fsdp_config(fake_accelerator(), classifier())


def build_trainer(accelerator):
    trainer = SimpleNamespace(model=classifier(), accelerator=accelerator, is_fsdp_enabled=None, installed=[])
    trainer.install_model = trainer.installed.append
    return trainer


def test_session_without_fsdp_leaves_the_model():
    trainer = build_trainer(Accelerator(cpu=True))
    with FSDPSession().train(trainer):
        assert trainer.is_fsdp_enabled is False
    assert trainer.is_fsdp_enabled is False
    assert trainer.installed == []


def test_session_enables_fsdp_and_installs_the_complete_model(assert_same_weights):
    trainer = build_trainer(fake_accelerator())
    with FSDPSession().train(trainer):
        assert trainer.is_fsdp_enabled is True
    assert trainer.is_fsdp_enabled is False
    [installed] = trainer.installed
    assert installed is not trainer.model
    assert_same_weights(installed, trainer.model)


def test_session_disables_fsdp_after_an_error_and_installs_nothing():
    trainer = build_trainer(fake_accelerator())
    with pytest.raises(ZeroDivisionError), FSDPSession().train(trainer):
        raise ZeroDivisionError
    assert trainer.is_fsdp_enabled is False
    assert trainer.installed == []


def test_gathered_model_keeps_class_mode_and_frozen_parameters_and_draws_no_random_numbers(assert_same_weights):
    model = classifier(attn_implementation="eager").train()
    model.bert.embeddings.requires_grad_(False)
    state = torch.get_rng_state()
    full = gather_full_model(model, type(model))
    assert torch.equal(torch.get_rng_state(), state)
    assert type(full) is type(model)
    assert full.training
    assert full.config._attn_implementation == "eager"
    frozen = {name for name, parameter in full.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("bert.embeddings.")}
    assert_same_weights(full, model)
