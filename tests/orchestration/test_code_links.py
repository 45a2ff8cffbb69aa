"""Links from the UI to the code."""

from pathlib import Path

import dagster as dg
import pytest

from assets import emissions
from curtail_pipeline.errors import SettingsError
from curtail_pipeline.orchestration.code_links import ANCHOR, ANCHOR_PATH, REPOSITORY_ENV, with_code_links

ROOT = Path(__file__).parents[2]


def link_of(repository: str | None, monkeypatch: pytest.MonkeyPatch) -> dg.UrlCodeReference | dg.LocalFileCodeReference:
    if repository is None:
        monkeypatch.delenv(REPOSITORY_ENV, raising=False)
    else:
        monkeypatch.setenv(REPOSITORY_ENV, repository)
    (linked,) = with_code_links([emissions.emissions_ledger])
    assert isinstance(linked, dg.AssetsDefinition)
    found = linked.metadata_by_key[dg.AssetKey("emissions_ledger")]["dagster/code_references"]
    (reference,) = found.code_references
    return reference


def test_the_anchor_is_where_it_says() -> None:
    assert ANCHOR.resolve() == (ROOT / ANCHOR_PATH).resolve()


def test_an_asset_links_to_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    local = link_of(None, monkeypatch)
    assert isinstance(local, dg.LocalFileCodeReference) and local.file_path.endswith("assets/emissions.py")
    line = (ROOT / "assets/emissions.py").read_text().splitlines()[local.line_number - 1]
    assert line.startswith("@dg.asset")
    for repository, branch in (("https://github.com/me/it", "main"), ("https://github.com/me/it@dev", "dev")):
        linked = link_of(repository, monkeypatch)
        assert isinstance(linked, dg.UrlCodeReference)
        assert linked.url == f"https://github.com/me/it/tree/{branch}/assets/emissions.py#L{local.line_number}"


def test_an_address_that_cannot_be_linked_into_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="CURTAIL_REPOSITORY='somewhere'"):
        link_of("somewhere", monkeypatch)
