"""What a site says besides numbers goes into records and logs, so that it is kept short and in one line."""

from types import SimpleNamespace
from typing import Any

import pytest

from curtail_pipeline.errors import MessageError
from curtail_pipeline.federation.orders import Result
from curtail_pipeline.federation.trainer_api import Answer
from curtail_pipeline.federation.transport import LONGEST, Failure, Malformed, site_said
from curtail_pipeline.flower.control_api import quiet

with quiet():
    from curtail_pipeline.flower.server import _read

LONG = "x" * (10 * LONGEST)


def replied(answer: str) -> object:
    record = SimpleNamespace(config_records={"answer": {"answer": answer}})
    reply: Any = SimpleNamespace(has_error=lambda: False, content=record)
    return _read(reply)


def test_a_reason_is_one_line_of_so_many_characters() -> None:
    assert site_said("no space left\n  on /data") == "no space left on /data"
    found = replied(Answer(name="A", error=f"\x1b[31m\nround 7: A is fine {LONG}").model_dump_json())
    assert isinstance(found, Failure) and found.reason.startswith("\\x1b[31m round 7: A is fine xxx")
    assert len(found.reason) == LONGEST + len(" ...") and found.reason.isprintable()
    odd = replied(Answer(name="A").model_dump_json().replace('"waiting"', f'"{LONG}"'))
    assert isinstance(odd, Malformed) and len(odd.reason) == LONGEST + len(" ...")


def test_what_a_site_works_with_is_some_words() -> None:
    content: dict[str, Any] = {
        "schema": 1, "site": "A", "round": 0, "parent_sha256": "0" * 64, "steps": 0, "tokens": 0, "consumed": [],
        "loss_first": None, "loss_last": None, "loss_mean": None, "seconds": 0, "tokens_per_s": 0, "stop": "steps",
        "weights": {"key": "w", "sha256": "0" * 64, "bytes": 0}, "inner_state": {"begin": "fresh", "end": "fresh"},
    }  # fmt: skip
    assert Result.read({**content, "made_with": {"torch": "2.13.0"}}, "it").made_with == {"torch": "2.13.0"}
    for made_with in ({"torch": LONG}, {LONG: "1"}, {str(n): "1" for n in range(65)}):
        with pytest.raises(MessageError, match="made_with"):
            Result.read({**content, "made_with": made_with}, "it")
