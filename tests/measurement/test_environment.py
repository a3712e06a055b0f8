import re

import torch

from hf_efficient.measurement.environment import describe_environment


def test_environment_has_the_machine_and_versions():
    environment = describe_environment()
    assert {"processor", "cores", "threads", "accelerator", "system", "python", "packages"} <= environment.keys()
    assert environment["packages"]["torch"].startswith(re.match(r"\d+\.\d+", torch.__version__).group())
    assert environment["threads"] == torch.get_num_threads()
    assert environment["cores"] >= 1
    assert environment["processor"]
