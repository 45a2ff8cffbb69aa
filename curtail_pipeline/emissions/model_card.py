"""A model card (README.md of a Hugging Face model folder) whose figures come from the ledger, and say what they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl
import yaml

from curtail_pipeline.emissions.baselines import Compared, by_name
from curtail_pipeline.emissions.basis import label_of
from curtail_pipeline.emissions.formats import mass, percent, short
from curtail_pipeline.emissions.grams import Totals, totals, totals_by
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.storage.manifest import Manifest
from curtail_pipeline.storage.records import Json


@dataclass(frozen=True)
class CardInput:
    """What the card of a checkpoint is made of."""

    name: str
    """Its heading."""
    lineage: Sequence[Manifest]
    """From the initialised model to the checkpoint; only their emissions count."""
    sites: Sequence[Site]
    ledger: pl.DataFrame
    """`grams.LEDGER_SCHEMA`, of at least these checkpoints."""
    synthetic: bool
    """Traces are made up: the front matter then declares no emissions, since they are no grid's."""
    policy: str
    heldout_loss: float | None = None
    """nat per token."""
    below: tuple[float, float] | None = None
    """gCO2/kWh, and `grams.below_share` of it."""
    baselines: Sequence[Compared] = ()
    """Always-on, of the same steps."""
    kinds: Sequence[str] = ()
    """Of the signals that CO2 is accounted by."""
    license: str | None = None
    """As the hub writes it; the publisher's to give."""
    datasets: Sequence[str] = ()
    """Their names on the Hugging Face hub, as far as they are known."""
    language: Sequence[str] = ()
    """ISO 639-1, as far as it is known."""


def model_card(card: CardInput) -> str:
    """The text: front matter, then what was trained, on what energy, and where it comes from."""
    last = card.lineage[-1]
    own = card.ledger.filter(pl.col("checkpoint").is_in([m.key for m in card.lineage]))
    used, label = totals(own), label_of(own, synthetic=card.synthetic)
    parts = [
        f"---\n{yaml.safe_dump(_front(card, used, label), sort_keys=False, allow_unicode=True)}---\n",
        f"# {card.name}\n",
        f"Pretrained on {short(last.tokens.total)} tokens ({last.tokens.total:,}) in {last.steps.end:,} optimiser "
        f"steps under the policy `{card.policy}`.{_windows(card, used)}\n",
    ]
    if card.heldout_loss is not None:
        parts.append(f"Held-out loss: {card.heldout_loss:.4f} nat per token.\n")
    parts += [_training(card), "## Emissions\n"]
    if label is not None:
        parts.append(f"All energy and CO2 below: **{label}**.\n")
    if card.synthetic:
        parts.append(
            "The grid signals of this run are **synthetic**: the figures show how the accounting works and say nothing "
            "about a real grid, so that the front matter declares no emissions.\n"
        )
    parts.append(_emissions(totals_by(own, "site"), card.sites, used))
    if rows := [
        [name, f"{row.kwh:.3f}", mass(row.co2_g), percent(row.ours_of_baseline)]
        for name, row in by_name(card.baselines).items()
        if row.co2_g is not None
    ]:
        parts.append("The same steps on one cluster that never pauses:\n")
        parts.append(_table(["always on in", "kWh", "CO2", "this model is"], rows))
    parts.append(
        "Energy is each site's power draw times its PUE, start-up and idle time included; the intensity of the grid is "
        "held from one stamp to the next, not interpolated. Hardware manufacture, network and storage are left out.\n"
    )
    parts.append("## Provenance\n")
    weights = last.files.get("model.safetensors")
    parts.append(
        f"- checkpoint `{last.key}`\n- experiment `{last.experiment_sha256}`\n- manifest `{last.sha256()}`\n"
        + (f"- model.safetensors `{weights.sha256}`\n" if weights else "")
        + f"- {len(card.lineage) - 1} segments: {sum(m.mode == 'local' for m in card.lineage)} local, "
        f"{sum(m.mode == 'federated' for m in card.lineage)} federated\n"
    )
    return "\n".join(parts)


def _front(card: CardInput, used: Totals, label: str | None) -> dict[str, Json]:
    """What the hub reads; a field that is not known is not there."""
    front: dict[str, Json] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if card.license:
        front["license"] = card.license
    if card.language:
        front["language"] = card.language[0] if len(card.language) == 1 else list(card.language)
    if card.datasets:
        front["datasets"] = list(card.datasets)
    front["tags"] = ["curtail-pipeline"]
    trained = _trained(card)
    if used.co2_g is None or label is None or card.synthetic or not trained:
        return front
    signal = " or ".join(card.kinds).replace("_", " ") or "intensity"
    # https://huggingface.co/docs/hub/model-cards-co2: emissions in grams of CO2.
    declared: dict[str, Json] = {
        "emissions": round(used.co2_g, 3),
        "source": f"curtail_pipeline, {label}: power intervals times the grid's step-held {signal}"
        + (f"; {used.unaccounted_kwh:.3g} kWh without a signal are not in it" if used.unaccounted_kwh else ""),
        "training_type": "pre-training",
        "geographical_location": ", ".join(dict.fromkeys(site.region for site in trained)),
        "hardware_used": "; ".join(f"{site.name}: {_hardware(site)}" for site in trained),
    }
    front["co2_eq_emissions"] = declared
    return front


def _trained(card: CardInput) -> list[Site]:
    return [site for site in card.sites if any(site.name in m.sites for m in card.lineage)]


def _hardware(site: Site) -> str:
    return f"{site.devices} x {site.device}, {site.training_kw:g} kW, PUE {site.pue:g}"


def _training(card: CardInput) -> str:
    """How, where and on what it was trained, also where the front matter declares no emissions."""
    lines = ["training type: pre-training", f"policy: `{card.policy}`"]
    if card.datasets:
        lines.append(f"data sets: {', '.join(card.datasets)}")
    if card.language:
        lines.append(f"language: {', '.join(card.language)}")
    if card.license:
        lines.append(f"licence: {card.license}")
    lines += [f"{site.name} in {site.region}: {_hardware(site)}" for site in _trained(card)]
    return "## Training\n\n" + "".join(f"- {line}\n" for line in lines)


def _windows(card: CardInput, used: Totals) -> str:
    """How much of the energy was curtailed power, by both counts; nothing where neither is known."""
    said = []
    own = " or from on-site generation" if any(site.on_site is not None for site in card.sites) else ""
    if used.curtailed_share is not None:
        said.append(f"{percent(used.curtailed_share)} inside the curtailment windows of its rule{own}")
    if card.below is not None and used.kwh:
        threshold, share = card.below
        said.append(f"{percent(share)} while the grid's signal was below {threshold:g} gCO2/kWh{own}")
    return f" Of its energy, {' and '.join(said)}." if said else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _emissions(by_site: Mapping[str, Totals], sites: Sequence[Site], used: Totals) -> str:
    places = [(site.name, site.region, by_site[site.name]) for site in sites if site.name in by_site]
    rows = [
        [name, region, f"{row.kwh:.3f}", mass(row.co2_g), percent(row.curtailed_share)]
        for name, region, row in [*places, ("all", "", used)]
    ]
    text = _table(["site", "grid region", "kWh", "CO2", "energy in curtailment windows"], rows)
    if used.unaccounted_kwh:
        bounds = f" Between {mass(used.co2_g_low)} and {mass(used.co2_g_high)} with them."
        text += f"\n{used.unaccounted_kwh:.3g} kWh fall into gaps of the traces and are not in the CO2."
        text += ("" if used.co2_g_low is None else bounds) + "\n"
    return text
