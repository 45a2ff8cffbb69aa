"""What a round's exchange costs: bytes per site, seconds of encoding, decoding and merging, and the server's memory.

The yardstick of a merge is copying the files that it reads, one after the other, and hashing the copies, in the same
run. Weights and movements are normal random numbers in the shape of the model; sites beyond the third are hard links.
With `--fragments N` also what a round costs that exchanges one of so many (`rounds.fragments`).
"""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict, get_args

import numpy as np

from curtail_pipeline.benchmarks import exchange_work as work
from curtail_pipeline.benchmarks.exchange_work import WRITTEN, Costs, apart
from curtail_pipeline.benchmarks.projection import DOWN, PARAMETERS, ExchangeCosts, not_training
from curtail_pipeline.errors import SettingsError
from curtail_pipeline.federation.codecs import CODECS
from curtail_pipeline.federation.fragments import Fragment
from curtail_pipeline.federation.tensor_stream import Floats, TensorFile, TensorWriter, from_float32
from curtail_pipeline.federation.update_file import held_tensors
from curtail_pipeline.settings.federation_settings import CodecName, LossyName, RoundSettings, StateCodecName
from curtail_pipeline.storage.store import file_sha256

WIDTHS = {"124M": (768, 12, 25_600), "561M": (1280, 20, 65_536), "7M": (256, 4, 8_192)}
"""Width, layers and vocabulary of NanoChat."""
DISTINCT = 3
CORES = 8
"""Of a site, and of the server, in the projection; more threads than that are not used."""
SEGMENT_ROUNDS = RoundSettings().max_rounds
"""The last of them exchanges everything."""
MOST_FRAGMENTS = 64
POOL = 1 << 22
NAMES: tuple[CodecName, ...] = ("fp32", *get_args(LossyName))
STATES: tuple[StateCodecName, ...] = get_args(StateCodecName)


class MergeCosts(TypedDict):
    merge_s: float
    copy_hash_s: float
    merge_ratio: float
    merge_cpu_s: float
    copy_hash_cpu_s: float
    """Both of all cores together: what counts on a machine that others use too."""
    peak_mib: float


class Shares(TypedDict):
    """Of a round of 600 s over 100 Mbit/s that a site of a 561M does not train, on `CORES` cores."""

    waiting: float
    overlapped: float
    waiting_with_states: float
    """Where inner states are merged too."""
    overlapped_with_states: float


class FragmentCosts(TypedDict):
    bytes: int
    """Of a site's update, the mean of a segment of `SEGMENT_ROUNDS`."""
    largest: float
    """Share of the parameters in the largest fragment."""
    start_s: float
    """Of writing what a site goes on from: the weights less what it has not sent."""
    encode_s: float
    decode_s: float
    merge_s: float
    waiting: float
    """As of `Shares`, with processor seconds of every round as of one fragment."""
    overlapped: float


class ModelCosts(TypedDict):
    bytes: dict[str, int]
    fraction_of_fp32: dict[str, float]
    encode_s: dict[str, float]
    encode_cpu_s: dict[str, float]
    decode_s: dict[str, float]
    decode_cpu_s: dict[str, float]
    merge_s: float
    copy_hash_s: float
    merge_ratio: float
    """The largest of all codecs, with the two that it is of."""
    peak_mib: float
    """The largest of all merges."""
    merges: dict[str, dict[str, MergeCosts]]
    """By codec and number of sites."""
    state_bytes: dict[str, int]
    """Of a merged inner state."""
    projected_561M_600s: dict[str, Shares]
    fragments: dict[str, FragmentCosts]
    """By codec."""


def run(
    models: str = "124M,561M",
    sites: str | int = 3,
    codecs: str = ",".join(NAMES),
    folder: str = "",
    fragments: int = 1,
) -> Mapping[str, object]:
    """Measure.

    Args:
        models: of `WIDTHS`.
        sites: numbers of sites, separated by commas.
        codecs: those to measure; `fp32` is always among them.
        folder: where the files are made, up to eight times the weights; a temporary one when not given.
        fragments: how many there are of the weights; nothing of them is measured with 1.

    Raises:
        SettingsError: there is no such codec or model, or no such number of fragments.
    """
    names = [name for name in NAMES if name == "fp32" or name in codecs.split(",")]
    if unknown := sorted({*codecs.split(",")} - {*NAMES}) or sorted({*models.split(",")} - {*WIDTHS}):
        raise SettingsError(f"{unknown[0]!r} is no codec or model; there are {', '.join((*NAMES, *WIDTHS))}")
    if not 1 <= fragments <= MOST_FRAGMENTS:
        raise SettingsError(f"--fragments {fragments} cannot be; give 1 to {MOST_FRAGMENTS}")
    counts = [int(count) for count in str(sites).split(",")]
    measured = {model: measure(model, names, counts, folder, fragments) for model in models.split(",")}
    return {"cores": os.cpu_count(), "sites": counts, "models": measured}


def measure(
    model: str, codecs: Sequence[CodecName], sites: Sequence[int] = (3,), folder: str = "", fragments: int = 1
) -> ModelCosts:
    """As `run`, of one model; `fp32` has to be among the codecs."""
    with tempfile.TemporaryDirectory(prefix="bench-exchange-", dir=folder or None) as scratch:
        return _Measured(Path(scratch), model, fragments).costs(codecs, sites)


def _shapes(model: str) -> dict[str, tuple[int, int]]:
    width, layers, vocabulary = WIDTHS[model]
    shapes = {"lm_head.weight": (vocabulary, width), "model.embed_tokens.weight": (vocabulary, width)}
    for layer in range(layers):
        name = f"model.layers.{layer}"
        shapes |= {f"{name}.self_attn.{kind}_proj.weight": (width, width) for kind in "qkvo"}
        shapes |= {f"{name}.mlp.fc1.weight": (4 * width, width), f"{name}.mlp.fc2.weight": (width, 4 * width)}
    return shapes


def _state_bytes(shapes: Mapping[str, tuple[int, int]], codec: StateCodecName) -> int:
    """AdamW keeps two values for each of embedding and head, Muon one for each of the others."""
    found = 0
    for name, (rows, columns) in shapes.items():
        coder = None if codec == "fp32" else CODECS[codec]
        size = coder.blocks(rows * columns) * coder.record if coder else 4 * rows * columns
        found += size if ".layers." in name else 2 * size
    return found


class _Measured:
    """One model's files, in a folder."""

    def __init__(self, folder: Path, model: str, fragments: int) -> None:
        self.folder, self.fragments = folder, fragments
        self.shapes = _shapes(model)
        self.pool = np.random.default_rng(0).standard_normal(2 * POOL, np.float32)
        self.layout = [(name, "F32", shape) for name, shape in sorted(self.shapes.items())]
        self.parent = self._filled("parent", lambda values, seed: values(seed) * np.float32(0.02))
        self.outer = self._filled("outer", lambda values, seed: values(seed + 50) * np.float32(1e-3))
        self.sites = [self._site(number) for number in range(DISTINCT)]

    def _site(self, number: int) -> Path:
        return self._filled(
            f"site{number}.fp32",
            lambda values, seed: values(seed) * np.float32(0.02) - values(seed + 100 + number) * np.float32(1e-3),
        )

    def _filled(self, name: str, make: Callable[[Callable[[int], Floats], int], Floats]) -> Path:
        path, place = self.folder / name, 0
        with TensorWriter(path, self.layout) as out:
            for _, _, shape in self.layout:
                for first in range(0, int(np.prod(shape)), 1 << 20):
                    count = min(1 << 20, int(np.prod(shape)) - first)
                    place += 1

                    def values(seed: int, count: int = count) -> Floats:
                        start = seed * 7919 % POOL
                        return self.pool[start : start + count]

                    out.write(from_float32(make(values, place * 1009), "F32"))
        return path

    def costs(self, codecs: Sequence[CodecName], counts: Sequence[int]) -> ModelCosts:
        encode: dict[str, Costs] = {}
        decode: dict[str, Costs] = {}
        size: dict[str, int] = {}
        merges: dict[str, dict[str, MergeCosts]] = {}
        parts: dict[str, FragmentCosts] = {}
        for codec in codecs:
            encode[codec] = self._encode(codec)
            size[codec] = self._update(0, codec).stat().st_size
            decode[codec] = apart(work.decode, self.parent, self._update(0, codec), codec, self.folder / "made")
            (self.folder / "made").unlink()
            merges[codec] = {str(count): self._merge(codec, count) for count in counts}
            if codec != "fp32":
                if self.fragments > 1:
                    parts[codec] = self._fragment(codec, size[codec])
                for number in range(DISTINCT):
                    self._update(number, codec).unlink()
        worst = max((m for by_count in merges.values() for m in by_count.values()), key=lambda m: m["merge_ratio"])
        return {
            "bytes": size,
            "fraction_of_fp32": {codec: round(size[codec] / size["fp32"], 6) for codec in codecs},
            "encode_s": {codec: costs.wall_s for codec, costs in encode.items()},
            "encode_cpu_s": {codec: costs.cpu_s for codec, costs in encode.items()},
            "decode_s": {codec: costs.wall_s for codec, costs in decode.items()},
            "decode_cpu_s": {codec: costs.cpu_s for codec, costs in decode.items()},
            "merge_s": worst["merge_s"],
            "copy_hash_s": worst["copy_hash_s"],
            "merge_ratio": worst["merge_ratio"],
            "peak_mib": max(m["peak_mib"] for by_count in merges.values() for m in by_count.values()),
            "merges": merges,
            "state_bytes": {codec: _state_bytes(self.shapes, codec) for codec in STATES},
            "projected_561M_600s": {
                codec: self._projected(codec, size, encode, decode, merges[codec][str(counts[0])])
                for codec in codecs
                if DOWN.get(codec, codec) in size
            },
            "fragments": parts,
        }

    def _projected(
        self,
        codec: CodecName,
        size: Mapping[str, int],
        encode: Mapping[str, Costs],
        decode: Mapping[str, Costs],
        merged: MergeCosts,
    ) -> Shares:
        down = DOWN.get(codec, codec)
        costs = ExchangeCosts(size[codec], size[down], encode[codec].cpu_s, merged["merge_cpu_s"], decode[down].cpu_s)
        costs = costs.scaled(4 * PARAMETERS / size["fp32"]).on(CORES)
        state = _state_bytes(_shapes("561M"), "int2" if codec == "int2_topk" else codec)
        more = costs._replace(up_bytes=costs.up_bytes + state, down_bytes=costs.down_bytes + state)
        return {
            "waiting": round(not_training(costs), 4),
            "overlapped": round(not_training(costs, overlap=True), 4),
            "waiting_with_states": round(not_training(more), 4),
            "overlapped_with_states": round(not_training(more, overlap=True), 4),
        }

    def _fragment(self, codec: LossyName, whole: int) -> FragmentCosts:
        """Of the largest one, by files in the places of the whole updates."""
        with TensorFile(self.parent) as parent:
            parts = [held_tensors(parent, Fragment(index=n, of=self.fragments)) for n in range(self.fragments)]
        counts = [sum(tensor.count for tensor in held.values()) for held in parts]
        share = max(counts) / sum(counts)
        part = Fragment(index=counts.index(max(counts)), of=self.fragments)
        size = whole * ((SEGMENT_ROUNDS - 1) / self.fragments + 1) / SEGMENT_ROUNDS
        started = apart(work.start, self.parent, self.folder / "made")
        encoded = [
            apart(work.encode, self.parent, site, codec, self._update(n, codec), part)
            for n, site in enumerate(self.sites)
        ]
        decoded = apart(work.decode, self.parent, self._update(0, codec), codec, self.folder / "made")
        (self.folder / "made").unlink()
        paths = [self._update(number, codec) for number in range(DISTINCT)]
        hashes = [file_sha256(path) for path in paths]
        merged = apart(work.merge_files, self.parent, self.outer, paths, hashes, codec, self.folder, part)
        for name in ("weights", "momentum"):
            (self.folder / name).unlink()
        encode = sorted(encoded)[DISTINCT // 2]
        costs = ExchangeCosts(size, size, encode.cpu_s + started.cpu_s, merged.cpu_s, decoded.cpu_s)
        costs = costs.scaled(PARAMETERS / sum(counts)).on(CORES)
        return {
            "bytes": round(size),
            "largest": round(share, 4),
            "start_s": started.wall_s,
            "encode_s": encode.wall_s,
            "decode_s": decoded.wall_s,
            "merge_s": merged.wall_s,
            "waiting": round(not_training(costs), 4),
            "overlapped": round(not_training(costs, overlap=True), 4),
        }

    def _update(self, site: int, codec: CodecName) -> Path:
        return self.folder / f"site{site}.{codec}"

    def _encode(self, codec: CodecName) -> Costs:
        """Of writing one site's update, the median of three; for fp32, of writing its weights."""
        taken = []
        for number, source in enumerate(self.sites):
            out = self.folder / "again" if codec == "fp32" else self._update(number, codec)
            taken.append(apart(work.encode, self.parent, source, codec, out))
        (self.folder / "again").unlink(missing_ok=True)
        return sorted(taken)[len(taken) // 2]

    def _merge(self, codec: CodecName, count: int) -> MergeCosts:
        paths = []
        for number in range(count):
            path = self.folder / f"link{number}"
            path.hardlink_to(self._update(number % DISTINCT, codec))
            paths.append(path)
        hashes = [file_sha256(self._update(number, codec)) for number in range(min(count, DISTINCT))]
        given = [hashes[number % DISTINCT] for number in range(count)]
        copied = apart(work.copy_and_hash, [self.parent, self.outer, *paths], self.folder)
        for number in range(WRITTEN):
            (self.folder / f"copy{number}").unlink()
        merged = apart(work.merge_files, self.parent, self.outer, paths, given, codec, self.folder)
        for path in (*paths, self.folder / "weights", self.folder / "momentum"):
            path.unlink()
        return {
            "merge_s": merged.wall_s,
            "copy_hash_s": copied.wall_s,
            "merge_ratio": round(merged.wall_s / copied.wall_s, 3),
            "merge_cpu_s": merged.cpu_s,
            "copy_hash_cpu_s": copied.cpu_s,
            "peak_mib": merged.peak_mib,
        }
