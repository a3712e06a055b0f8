import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "two_processes.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"target_flops": 2.0, "rounds": 2},
        {"target_flops": 2.0, "ramp": 0.5},
        {"target_speedup": 1.2, "ramp": 0.5, "criterion": "movement"},
        {"weights": 0.5, "rewind": "weights"},
        {
            "narrow": "hidden_size=16",
            "teaching": {"hidden_weight": 1.0, "embedding_weight": 1.0, "relation_weight": 1.0},
        },
        {"target_flops": 2.0, "teaching": {"hidden_weight": 1.0, "attention_weight": 1.0}},
        {"layers": 0.5, "teaching": {"cache_teacher": True}},
    ],
    ids=str,
)
def test_two_processes_cut_the_same_units_and_learn_the_same_weights(tmp_path, changes):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    run = subprocess.run(
        [*command, str(SCRIPT), str(tmp_path), json.dumps(changes)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in (0, 1))
    assert first.pop("rank") == 0
    assert second.pop("rank") == 1
    assert first == second
    assert first["projections"][0] == (2 * 16 * 32 if "narrow" in changes else 0)
