"""`bench quality`: which arms train what, and what is said of their curves; the training is the product's own."""

from pathlib import Path

import pytest

from curtail_pipeline.benchmarks import quality_arms
from curtail_pipeline.benchmarks.bench_quality import _chosen, _summary
from curtail_pipeline.benchmarks.quality_arms import CENTRAL, Arm, Curve, arms, plan_of
from curtail_pipeline.benchmarks.quality_run import experiment_of
from curtail_pipeline.errors import SettingsError

MCI = Path("nowhere")


def steps_of(arm: Arm, steps: int, mci: Path = MCI) -> dict[str, int]:
    stretches, shares = plan_of(arm, steps, mci)
    done = dict.fromkeys(shares, 0)
    for part in (part for stretch in stretches for part in stretch.rounds):
        for site, count in part.items():
            done[site] += count
    return done


@pytest.mark.parametrize(("membership", "count"), [(CENTRAL, 1), ("sites3", 3), ("sites8", 8)])
def test_every_arm_trains_the_same_steps(membership: str, count: int) -> None:
    done = steps_of(Arm(name="arm", membership=membership), 100)
    assert len(done) == count and sum(done.values()) == 100 and max(done.values()) - min(done.values()) <= 16


def test_a_larger_batch_takes_fewer_steps_of_more_tokens() -> None:
    arm = next(arm for arm in arms(grid=False) if arm.name == "synchronous3")
    assert sum(steps_of(arm, 384).values()) == 128


def test_membership_is_what_a_run_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    arm = Arm(name="laptop", membership="laptop")
    stretches, shares = plan_of(arm, 96, MCI)
    first, second = stretches[:2]
    assert first.rounds == ({"NEM_SA": 16}, {"NEM_SA": 16}) and second.members == ("SPP_TX", "NEM_SA")
    assert sum(steps_of(arm, 96).values()) == 96 and set(shares) == {"CAISO_NORTH", "SPP_TX", "NEM_SA"}
    monkeypatch.setattr(quality_arms, "STEPS", 100_000)
    with pytest.raises(SettingsError, match=r"have windows for .* steps, not 100000; ask fewer"):
        plan_of(arm, 100_000, MCI)


def test_a_longer_job_has_the_same_windows_and_more_rounds_in_each() -> None:
    arm = Arm(name="laptop", membership="laptop")
    (short, _), (long, _) = plan_of(arm, 384, MCI), plan_of(arm, 1536, MCI)
    assert {member for stretch in short for member in stretch.members} == {m for part in long for m in part.members}
    assert max(count for stretch in long for part in stretch.rounds for count in part.values()) == 16
    assert 3 < sum(len(part.rounds) for part in long) / sum(len(part.rounds) for part in short) < 5


def curve(arm: str, seed: int, *losses: float) -> Curve:
    """Its odd checkpoints are federated, the even ones made by a site alone."""
    members = tuple((number % 2 + 1) * (number > 0) for number in range(len(losses)))
    return Curve(arm=arm, seed=seed, steps=tuple(range(len(losses))), losses=losses, members=members, parameters=5)


def test_gaps_and_rises_are_of_federated_arms_against_the_centralised_one() -> None:
    chosen = _chosen(arms(grid=False), [CENTRAL, "laptop"])
    curves = [
        curve(CENTRAL, 1, 8.0, 4.0, 4.5, 4.2),
        curve(CENTRAL, 2, 8.0, 4.4),
        curve("laptop", 1, 8.0, 4.3, 4.33, 4.34),
        curve("laptop", 2, 8.0, 4.36),
    ]
    found = _summary(chosen, curves, "tiny", 384, 2)
    assert found["arms"]["central"]["loss"] == [4.2, 4.4] and found["gap_nats"] == {"laptop": 0.05}
    assert (
        (found["worst_rise"], found["worst_rise_alone"]) == (0.01, 0.03)
        and found["seeds"] == 2
        and found["gap_perplexity"] == {"laptop": 3.78}
    )
    with pytest.raises(SettingsError, match="no arm 'lap'; there are central; laptop;"):
        _chosen(arms(grid=True), ["lap"])


def test_settings_of_an_arm_reach_its_experiment() -> None:
    from curtail_pipeline.benchmarks.quality_arms import Task

    known = {arm.name: arm for arm in arms(grid=True)}
    task = Task(arm=known["laptop, 0.7/0.9, own"], seed=4, steps=384, preset="tiny", stretches=(), shares={"A": 1.0})
    found = experiment_of(task)
    assert (found.rounds.outer_lr, found.rounds.outer_momentum, found.rounds.inner_state) == (0.7, 0.9, "own")
    assert (found.seed, found.job.steps, [site.name for site in found.sites]) == (4, 384, ["A"])
    assert (found.sites[0].device, found.corpus.source) == ("cpu", "embedded")
    elsewhere = experiment_of(task.model_copy(update={"device": "cuda", "source": "texts/*.txt"}))
    assert (elsewhere.sites[0].device, elsewhere.corpus.source) == ("cuda", "texts/*.txt")
    doubled = experiment_of(task.model_copy(update={"arm": known["synchronous2"]}))
    assert (doubled.training.total_batch_tokens, doubled.job.steps, doubled.training.warmup_steps) == (8192, 192, 5)
