"""Every kind of fault, by name, and in which set-ups it can take place."""

from collections.abc import Callable, Mapping
from functools import partial

from curtail_pipeline.benchmarks.chaos_setups import Part
from curtail_pipeline.benchmarks.fault_injector import Moment, Strike, Target
from curtail_pipeline.benchmarks.lying_site import LIES

Kind = Callable[[Moment], Strike | None]

RUN_KILLED = "kill the command and start it again"
STOP_RUN = "stop the command for 5 s"
FOR_EVER: Mapping[str, float | None] = {"for 5 s": 5, "for 60 s": 60, "for ever": None}
HOUR_S = 3600

EVERYWHERE: Mapping[str, Kind] = {
    **{f"kill {part}": partial(Moment.kill, part=part) for part in Part},
    **{
        f"stop {part} {how}": partial(Moment.stop, seconds=s, part=part) for part in Part for how, s in FOR_EVER.items()
    },
    "delay trainer": Moment.delay,
    **{f"damage {target}": partial(Moment.corrupt, target=target) for target in Target},
    **{f"forge {lie}": partial(Moment.forge, lie=lie) for lie in LIES},
    "clock an hour ahead": partial(Moment.clock_jump, seconds=HOUR_S),
    "clock an hour behind": partial(Moment.clock_jump, seconds=-HOUR_S),
}
WITH_A_FOLDER: Mapping[str, Kind] = {
    f"full disk for {part} for 5 s": partial(Moment.fill, part=part) for part in (Part.TRAINER, Part.SERVERAPP)
}
WITH_A_BUCKET: Mapping[str, Kind] = {
    **{
        f"store {word} for 10 s": partial(Moment.store_fault, what=what, seconds=10)
        for word, what in {"500s": "500", "slow": "slow", "gone": "drop", "full": "full", "silent": "silent"}.items()
    },
    "store 500s for a site for 10 s": partial(Moment.store_fault, what="500", seconds=10, of_site=True),
    "partition of a site from the store for 20 s": partial(Moment.store_fault, what="silent", seconds=20, of_site=True),
}
WITH_LINES: Mapping[str, Kind] = {
    f"partition of a site {how}": partial(Moment.partition, seconds=s) for how, s in FOR_EVER.items()
}


def kinds_of(setup: str) -> Mapping[str, Kind]:
    """By name."""
    return {
        "local": {**EVERYWHERE, **WITH_A_FOLDER},
        "standing": {
            **{name: kind for name, kind in EVERYWHERE.items() if not name.startswith(f"stop {Part.SUPERVISOR}")},
            **WITH_A_FOLDER,
            **WITH_LINES,
        },
        "s3": {**EVERYWHERE, **WITH_A_BUCKET},
    }[setup]
