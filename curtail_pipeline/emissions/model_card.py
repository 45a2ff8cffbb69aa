"""A model card (README.md of a Hugging Face model folder) whose `co2_eq_emissions` come from the ledger."""

from collections.abc import Mapping, Sequence

import polars as pl
import yaml

from curtail_pipeline.emissions.formats import mass, percent, short
from curtail_pipeline.emissions.grams import Totals, totals, totals_by
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.storage.manifest import Manifest
from curtail_pipeline.storage.records import Json


def model_card(
    name: str,
    lineage: Sequence[Manifest],
    sites: Sequence[Site],
    ledger: pl.DataFrame,
    *,
    heldout_loss: float | None = None,
    synthetic: bool,
) -> str:
    """The card of the last checkpoint of a lineage.

    Args:
        name: heading of the card.
        lineage: manifests from the initialised model to the checkpoint; only their emissions count.
        ledger: `grams.LEDGER_SCHEMA`, of at least these checkpoints.
        synthetic: the traces are made up; the front matter then has no emissions, since nothing was measured.
    """
    last = lineage[-1]
    own = ledger.filter(pl.col("checkpoint").is_in([m.key for m in lineage]))
    used = totals(own)
    trained = [site for site in sites if any(site.name in m.sites for m in lineage)]
    front: dict[str, Json] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["curtail-pipeline"],
    }
    if used.co2_g is not None and not synthetic:
        # https://huggingface.co/docs/hub/model-cards-co2: emissions in grams of CO2.
        front["co2_eq_emissions"] = {
            "emissions": round(used.co2_g, 3),
            "source": "curtail_pipeline: power intervals times step-held grid intensity",
            "training_type": "pre-training",
            "geographical_location": ", ".join(dict.fromkeys(site.region for site in trained)),
        }
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n",
        f"# {name}\n",
        f"Pretrained on {short(last.tokens.total)} tokens ({last.tokens.total:,}) in {last.steps.end:,} optimiser "
        "steps, only while the signal of a training site's grid said that renewable power was being curtailed.\n",
    ]
    if heldout_loss is not None:
        parts.append(f"Held-out loss: {heldout_loss:.4f} nat per token.\n")
    parts.append("## Emissions\n")
    if synthetic:
        parts.append(
            "The grid signals of this run are **synthetic**: the figures show how the accounting works and say nothing "
            "about a real grid, so that the front matter declares no emissions.\n"
        )
    parts.append(_emissions(totals_by(own, "site"), sites, used))
    parts.append(
        "Energy is each site's power draw times its PUE, start-up and idle time included; the intensity of the grid is "
        "held from one stamp to the next, not interpolated. Hardware manufacture, network and storage are left out.\n"
    )
    parts.append("## Provenance\n")
    weights = last.files.get("model.safetensors")
    parts.append(
        f"- checkpoint `{last.key}`\n- experiment `{last.experiment_sha256}`\n- manifest `{last.sha256()}`\n"
        + (f"- model.safetensors `{weights.sha256}`\n" if weights else "")
        + f"- {len(lineage) - 1} segments: {sum(m.mode == 'local' for m in lineage)} local, "
        f"{sum(m.mode == 'federated' for m in lineage)} federated\n"
    )
    return "\n".join(parts)


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
        text += f"\n{used.unaccounted_kwh:.3g} kWh fall into gaps of the traces and are not in the CO2.\n"
    return text
