import pytest

from curtail_pipeline.benchmarks.bench_sync import run


@pytest.mark.usefixtures("few_walks")
def test_not_waiting_for_slow_links_emits_no_more_and_a_plan_least() -> None:
    rows = run(sites="3", hours=5.0, slow_mbit_s=40.0)["rows"]
    assert isinstance(rows, list)
    found = [row for row in rows if isinstance(row, dict)]
    assert [row["finished"] for row in found] == [False, True, True], "no round of all is worth its waiting"
    per_step = [float(str(row["g_per_step"])) for row in found]
    assert per_step[2] < per_step[1] < per_step[0]
