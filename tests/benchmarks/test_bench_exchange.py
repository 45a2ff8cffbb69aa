"""`bench exchange` on a model of a few thousand parameters: the form of its answer, and that bytes are files' own."""

import pytest

from curtail_pipeline.benchmarks import bench_exchange
from curtail_pipeline.benchmarks.bench_exchange import run
from curtail_pipeline.errors import SettingsError


@pytest.mark.long
def test_a_small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench_exchange.WIDTHS, "small", (64, 2, 8192))
    found = run("small", "1,2", "int2_topk", fragments=2)["models"]["small"]
    assert found["bytes"]["fp32"] > 4 * (2 * 64 * 8192 + 2 * 12 * 64 * 64)
    assert found["bytes"]["int2_topk"] < found["bytes"]["fp32"] / 32
    assert found.keys() >= {"encode_s", "decode_s", "merge_s", "copy_hash_s", "merge_ratio", "peak_mib"}
    assert found["projected_561M_600s"].keys() == {"fp32"}, "int2, by which its step would go back, was not measured"
    assert found["projected_561M_600s"]["fp32"]["waiting"] > 0.59
    assert found["state_bytes"]["fp32"] == 4 * (4 * 64 * 8192 + 2 * 12 * 64 * 64) > 3.9 * found["state_bytes"]["int8"]
    (parts,) = found["fragments"].values()
    assert parts["bytes"] / found["bytes"]["int2_topk"] == pytest.approx((11 / 2 + 1) / 12, abs=1e-3)
    assert 0.5 <= parts["largest"] < 0.6 and 0 < parts["overlapped"] < parts["waiting"] < 1
    assert found["merges"]["int2_topk"].keys() == {"1", "2"} and found["peak_mib"] < 512


def test_unknown_names_are_told() -> None:
    with pytest.raises(SettingsError, match="'int3' is no codec or model"):
        run(codecs="fp32,int3")
    with pytest.raises(SettingsError, match="'7B' is no codec or model"):
        run(models="7B")
    with pytest.raises(SettingsError, match="--fragments 0 cannot be; give 1 to 64"):
        run(fragments=0)
