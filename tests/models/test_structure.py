import json

from hf_efficient.models import LayerStructure, Structure

STRUCTURE = Structure(
    {
        "encoder": (
            LayerStructure(0, {"attention": (1, 3)}, {"feed_forward": 40}),
            LayerStructure(2, {"attention": ()}, {"feed_forward": 0}),
        )
    }
)


def test_structure_round_trips_through_json():
    assert Structure.from_dict(json.loads(json.dumps(STRUCTURE.to_dict()))) == STRUCTURE


def test_dict_has_the_format_of_saved_configs():
    assert STRUCTURE.to_dict() == {
        "encoder": [
            {"source": 0, "heads": {"attention": [1, 3]}, "neurons": {"feed_forward": 40}},
            {"source": 2, "heads": {"attention": []}, "neurons": {"feed_forward": 0}},
        ]
    }
