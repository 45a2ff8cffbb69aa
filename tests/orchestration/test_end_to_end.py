"""The whole pipeline on the micro experiment, with real processes: run, load, run again."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from micro import START, curtail, curtail_here
from whole_runs import CURTAILED, Finished, manifests, write

from curtail_pipeline.signals.checks import CHECKS
from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.folder_store import FolderStore

pytestmark = pytest.mark.slow


def test_every_mode_runs_and_the_summary_says_so(finished: Finished) -> None:
    summary = finished.summary
    modes = [row["mode"] for row in summary["checkpoints"]]
    assert modes[0] == "init" and {"local", "federated"} <= set(modes)
    assert all(row["heldout_loss"] is not None for row in summary["checkpoints"])
    assert summary["checkpoints"][-1]["heldout_loss"] < summary["checkpoints"][0]["heldout_loss"]
    assert {row["region"] for row in summary["baselines"]} == set(CURTAILED)
    assert [check["name"] for check in summary["checks"]] == list(CHECKS)
    assert all(check["passed"] for check in summary["checks"])
    assert Path(summary["report"]).stat().st_size > 10_000


def test_membership_is_what_the_rule_gives_on_the_trace(finished: Finished) -> None:
    """Realised members against the rule applied by hand: 250 s of start-up, 600 s of exit delay."""
    home = finished.home
    for manifest in [m for m in manifests(home).values() if m.mode != "init"]:
        minute = (manifest.start - START).total_seconds() / 60
        trains = [site for site, ((first, last),) in CURTAILED.items() if first + 250 / 60 <= minute + 1e-9 < last + 10]
        assert manifest.members == trains, manifest.key
        assert (manifest.mode == "federated") == (len(trains) > 1)


def test_token_ranges_are_an_exact_partition(finished: Finished) -> None:
    home, summary = finished.home, finished.summary
    last = list(manifests(home).values())[-1]
    counted = 0
    for site, ledger in last.ledger.items():
        ranges = sorted(tuple(part) for part in ledger.consumed)
        assert all(first[2] < second[1] or first[0] < second[0] for first, second in pairwise(ranges)), site
        assert ranges[0][1] == 0
        counted += sum(end - begin for _, begin, end in ranges)
    assert counted * 64 == last.tokens.total == summary["tokens"]
    assert Checkpoints(FolderStore(home / "micro" / "store")).verify_chain()


def test_the_last_checkpoint_loads_and_generates_with_transformers_alone(finished: Finished) -> None:
    code = """
import sys
sys.modules["curtail_pipeline"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
out = model.generate(**tokenizer("Return the", return_tensors="pt"), max_new_tokens=8, do_sample=False)
print(repr(tokenizer.decode(out[0])))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, finished.summary["checkpoint"]], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "Return the" in done.stdout


def test_running_again_does_nothing_new(copied: Finished) -> None:
    home, experiment = copied.home, copied.experiment
    log = home / "micro" / "federation" / "logs" / "supervisor.log"
    started = log.stat().st_mtime_ns
    again = curtail("run", "--experiment", str(experiment), "--json", home=home)
    assert again.returncode == 0, again.stderr
    assert log.stat().st_mtime_ns == started, "a federation was started that nobody needs"
    assert json.loads(again.stdout.splitlines()[-1])["checkpoints"] == copied.summary["checkpoints"]


def test_a_changed_experiment_on_an_existing_home_is_refused_with_the_difference(
    copied: Finished, tmp_path: Path
) -> None:
    home = copied.home
    before = {key: found.sha256() for key, found in manifests(home).items()}
    changed = write(tmp_path, seed=4)
    done = curtail_here("run", "--experiment", str(changed), home=home)
    assert done.returncode == 1
    assert "seed" in done.stderr and "3" in done.stderr and "4" in done.stderr and "--out" in done.stderr
    assert {key: found.sha256() for key, found in manifests(home).items()} == before
