"""The job of `bench wan`: two sites, a third joins, the first leaves, a pause, and the two left; a round each."""

from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple, get_args

from curtail_pipeline.errors import SettingsError
from curtail_pipeline.settings.federation_settings import CodecName, DownloadName
from curtail_pipeline.storage.records import Json

START = datetime(2026, 5, 1, tzinfo=UTC)
CURTAILED: Final = {"north": [(10, 80)], "south": [(10, 100), (140, 160)], "east": [(50, 100), (140, 160)]}
"""Minutes from START: north and south, all three, south and east, a pause, south and east."""
JOINS = "east"
MODELS: Final[Mapping[str, Mapping[str, Json]]] = {
    "d4": {"preset": "d4", "model_overrides": {"vocab_size": 65536}},
    "tiny": {"preset": "tiny"},
}
STEPS_PER_S: Final = {"d4": 0.001, "tiny": 0.004}
"""Of virtual time: some steps in a round, which processors without a GPU take seconds for."""
COARSEST_DOWNLOAD: Final[DownloadName] = "int2"
"""Where the codec of what sites send is none for what they fetch."""


OVERLAP: Final = "overlap"
FRAGMENTS: Final = "fragments"
PARTS: Final = 4
"""Rounds in place of one where they overlap or exchange fragments, of which there are as many, each with as many steps:
one alone has none to overlap with."""


class Arm(NamedTuple):
    """How what a run's sites train travels."""

    codec: CodecName
    """Of what they send."""
    overlap: bool = False
    fragments: bool = False

    @property
    def name(self) -> str:
        more = [name for name, asked in ((OVERLAP, self.overlap), (FRAGMENTS, self.fragments)) if asked]
        return "+".join([self.codec, *more])

    @property
    def parts(self) -> int:
        """Rounds in place of one."""
        return PARTS if self.overlap or self.fragments else 1


def arms_of(text: str) -> list[Arm]:
    """Names separated by commas, each a codec, or one with `+overlap`, `+fragments` or both.

    Raises:
        SettingsError: one is none of a codec, or cannot overlap.
    """
    known = [
        Arm(codec, overlap, fragments)
        for codec in get_args(CodecName)
        for overlap in (False, True)
        for fragments in (False, True)
        if codec != "fp32" or not (overlap or fragments)
    ]
    by_name = {arm.name: arm for arm in known} | {
        f"{a.codec}+{FRAGMENTS}+{OVERLAP}": a for a in known if a.overlap and a.fragments
    }
    names = [name.strip() for name in text.split(",")]
    if strange := [name for name in names if name not in by_name]:
        codecs = ", ".join(get_args(CodecName))
        raise SettingsError(
            f"no arm {strange[0]!r}; there are {codecs}, and all but fp32 with +{OVERLAP} and +{FRAGMENTS}"
        )
    return [*dict.fromkeys(by_name[name] for name in names)]


def trace() -> str:
    """The file of the experiment's signal."""
    rows = ["time," + ",".join(CURTAILED)]
    for minute in range(0, 240, 5):
        wobble = minute // 5 % 7  # a feed that stands still counts as stuck
        low = {name: any(begin <= minute < end for begin, end in spans) for name, spans in CURTAILED.items()}
        rows.append(f"{(START + timedelta(minutes=minute)).isoformat()},"
                    + ",".join(f"{(20 if low[name] else 500) + wobble}" for name in CURTAILED))  # fmt: skip
    return "\n".join(rows) + "\n"


def linked_of(text: str) -> tuple[str, ...]:
    """Sites separated by commas.

    Raises:
        SettingsError: one is none.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if strange := [name for name in names if name not in CURTAILED]:
        raise SettingsError(f"no site {strange[0]!r}; there are {', '.join(CURTAILED)}")
    return names


def experiment(model: str, arm: Arm, linked: Collection[str], trace_file: str) -> dict[str, Json]:
    """The experiment's file.

    Args:
        arm: what sites fetch goes by the codec of what they send where it can.
        linked: sites without credentials of the bucket.
        trace_file: with the content of `trace`.
    """
    downloads: dict[str, DownloadName] = {name: name for name in get_args(DownloadName)}
    # inner states stay at their sites, so that what travels is an update and new weights
    exchange = {
        "inner_state": "own",
        "upload_codec": arm.codec,
        "download_codec": downloads.get(arm.codec, COARSEST_DOWNLOAD),
        "overlap": arm.overlap,
        "fragments": PARTS if arm.fragments else 1,
    }
    parts = arm.parts
    speed = parts * STEPS_PER_S[model]
    return {
        "name": "wan",
        "seed": 3,
        "clock": {"end": (START + timedelta(minutes=200)).isoformat()},
        "traces": {"provider": "file", "path": trace_file},
        "sites": [
            {"name": name, "region": name, "training_kw": 2.0, "idle_kw": 0.5, "steps_per_s": speed}
            for name in CURTAILED
        ],
        "overheads": {
            "provisioning_s": 240,
            "connect_s": 10,
            "round_load_s": 12,
            "round_tail_s": 14,
            "outer_step_s": 2,
        },
        "rounds": {"round_s": 2400 / parts, "max_rounds": 2 * parts, **exchange},
        "job": {"steps": 1000},
        # a machine that runs all four is slower than its lines: processes get the time that is not measured here
        "federation": {"linked": [*linked], "delivery_s": 180, "liveness_s": 60},
        "corpus": {"vocab_size": 512, "sample_mib": 0.2, "heldout_fraction": 0.05, "max_documents": 400},
        "training": {
            **MODELS[model],
            "sequence_length": 64,
            "device_batch_sequences": 4,
            "total_batch_tokens": 512,
            "evaluation_sequences": 32,
        },
    }
