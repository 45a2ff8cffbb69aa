"""The compose file of an experiment: what it mounts, who sees what, and that the checked-in one is today's."""

import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from image_layout import read_dockerfile
from micro import EXPERIMENT, ROOT, curtail_here

from curtail_pipeline.deployment.compose import Deployment, compose_file, front
from curtail_pipeline.deployment.secret_files import CREDENTIALS, make_secrets
from curtail_pipeline.errors import SettingsError
from curtail_pipeline.flower.keys import lacking_hosts
from curtail_pipeline.settings.experiment import load_experiment, parse_experiment


@pytest.fixture(scope="module")
def laptop() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    return found


def written(
    folder: Path, *, store: str | None = None, secrets: str = "./secrets", deployed: Any = None, **changes: Any
) -> dict[str, Any]:
    content = {**EXPERIMENT, "traces": {"provider": "synthetic", "start": "2026-03-21T00:00:00Z", "days": 2}, **changes}
    regions = ("CAISO_NORTH", "SPP_TX", "NEM_SA")
    if "sites" not in changes:
        sites: list[dict[str, Any]] = EXPERIMENT["sites"]
        content["sites"] = [{**site, "region": region} for site, region in zip(sites, regions, strict=True)]
    deployment = Deployment(folder / "compose.yaml", secrets, "x", store, **(deployed or {}))
    text = compose_file(parse_experiment(content, "case"), deployment, ["ca.crt", "superlink.key"])
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def services(content: dict[str, Any], image: str) -> dict[str, Any]:
    return {n: each for n, each in content["services"].items() if each["image"] == f"curtail_pipeline:{image}"}


def test_the_file_in_the_repository_is_todays(tmp_path: Path, laptop: dict[str, Any]) -> None:
    command = "curtail deploy compose -e laptop --file deploy/compose.yaml --build .."
    names = make_secrets(tmp_path, [], (), own_store=True)
    deployment = Deployment(Path("deploy/compose.yaml"), "./secrets", command, build="..")
    text = compose_file(load_experiment("laptop"), deployment, names)
    assert text == (ROOT / "deploy" / "compose.yaml").read_text(), f"write it again: {command}"
    assert (ROOT / "deploy/nginx/superlink.conf").read_text() == front("127.0.0.1:8000", "/keys")


def test_nothing_is_shared_and_no_secret_is_in_an_environment(laptop: dict[str, Any]) -> None:
    volumes = [
        volume.split(":")[0] for each in laptop["services"].values() for volume in each.get("volumes", ()) if volume
    ]
    assert len(volumes) == len(set(volumes)) and set(volumes) == laptop["volumes"].keys()
    for each in laptop["services"].values():
        words = [name for name in each.get("environment", {}) if "PASSWORD" in name or "KEY" in name or "USER" in name]
        assert all(name.endswith("_FILE") or name == "POSTGRES_USER" for name in words)
    for secret in laptop["secrets"].values():
        assert secret["file"].startswith("./secrets/")
    assert "deploy/secrets/" in (ROOT / ".gitignore").read_text().split()


def test_sites_reach_the_front_and_the_store_alone(laptop: dict[str, Any]) -> None:
    beside = {name for name, each in laptop["services"].items() if "sites" in each["networks"]}
    assert beside == {"front", "store", "site-caiso-north", "site-spp-tx", "site-nem-sa"}
    for name in ("site-caiso-north", "site-spp-tx", "site-nem-sa"):
        site = laptop["services"][name]
        assert site["networks"] == ["sites"] and "--superlink front:8443 --ca" in " ".join(site["command"])
        assert not any(word.startswith(("AWS", "DAGSTER")) for word in site["environment"])
    linked = yaml.safe_load(laptop["configs"]["experiment"]["content"])["federation"]["linked"]
    assert linked == ["CAISO_NORTH", "SPP_TX", "NEM_SA"] and laptop["networks"]["sites"] == {"internal": True}


def test_what_asks_for_torch_has_the_image_with_it(laptop: dict[str, Any], tmp_path: Path) -> None:
    assert services(laptop, "control").keys() == {
        "home", "code", "webserver", "daemon", "superlink", "admission"
    }  # fmt: skip
    assert services(laptop, "site").keys() == {"worker", "site-caiso-north", "site-spp-tx", "site-nem-sa"}
    judged = written(tmp_path, federation={"heldout_gate": 0.5})
    assert "superlink" in services(judged, "site"), "the ServerApp judges updates on held-out text"


def test_gpus_are_reserved_by_a_profile(tmp_path: Path) -> None:
    sites: list[dict[str, Any]] = [dict(site, region="SPP_TX") for site in EXPERIMENT["sites"]]
    sites[0] |= {"device": "cuda:0"}
    found = written(tmp_path, sites=sites)["services"]
    (device,) = found["site-north"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert found["site-north"]["profiles"] == ["gpu"] and "profiles" not in found["site-south"]


def test_files_of_this_machine_are_mounted_and_renamed(tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()
    traces = {"provider": "file", "path": str(tmp_path / "traces" / "*.csv")}
    sites: list[dict[str, Any]] = [dict(site) for site in EXPERIMENT["sites"]]
    sites[0] |= {"on_site": {"path": str(tmp_path / "sun.csv")}, "provisioner": {"kind": "subprocess"}}
    found = written(
        tmp_path, traces=traces, sites=sites, corpus={**EXPERIMENT["corpus"], "source": "hf://datasets/a/b"}
    )
    inside = yaml.safe_load(found["configs"]["experiment"]["content"])
    assert inside["traces"]["path"] == "/inputs/0/traces/*.csv" and inside["corpus"]["source"] == "hf://datasets/a/b"
    assert inside["sites"][0]["on_site"]["path"] == "/inputs/1/sun.csv" and "provisioner" not in inside["sites"][0]
    bound = [volume for volume in found["services"]["code"]["volumes"] if isinstance(volume, dict)]
    assert [(each["source"], each["target"], each["read_only"]) for each in bound] == [
        (str(tmp_path / "traces"), "/inputs/0/traces", True),
        (str(tmp_path / "sun.csv"), "/inputs/1/sun.csv", True),
    ]
    assert all("inputs" not in str(found["services"][f"site-{n}"].get("volumes")) for n in ("north", "south", "east"))


def test_a_bucket_of_ones_own(tmp_path: Path) -> None:
    found = written(tmp_path, store="s3://mine/runs")
    assert "store" not in found["services"] and found["services"]["home"]["command"] == ["curtail", "deploy", "prepare"]
    environment = found["services"]["code"]["environment"]
    assert environment["CURTAIL_STORE"] == "s3://mine/runs" and "AWS_ENDPOINT_URL" not in environment
    assert found["networks"]["sites"] == {}, "sites reach the bucket"
    assert environment["AWS_DEFAULT_REGION"] == "us-east-1"
    elsewhere = written(tmp_path, store="s3://mine/runs", deployed={"region": "eu-west-1"})
    assert elsewhere["services"]["superlink"]["environment"]["AWS_DEFAULT_REGION"] == "eu-west-1"
    with pytest.raises(SettingsError, match=rf"{CREDENTIALS} does not exist; write it as ~/.aws/credentials is"):
        make_secrets(tmp_path / "secrets", ["A"], (), own_store=False)


def test_a_site_elsewhere_is_admitted_and_has_no_service(tmp_path: Path) -> None:
    found = written(tmp_path, store="s3://mine/runs", deployed={"elsewhere": ("EAST",)})
    assert [name for name in found["services"] if name.startswith("site-")] == ["site-north", "site-south"]
    assert {"source": "site-east.pub", "target": "/sites/EAST.pub"} in found["services"]["admission"]["configs"]
    assert "site-east.key" not in found["secrets"] and "site-east" not in found["volumes"]
    with pytest.raises(SettingsError, match="unknown site 'WEST'"):
        written(tmp_path, store="s3://mine/runs", deployed={"elsewhere": ("WEST",)})
    words = ("deploy", "compose", "-e", "laptop", "--file", str(tmp_path / "c.yaml"), "--elsewhere", "SPP_TX")
    refused = curtail_here(*words, home=tmp_path)
    assert refused.returncode == 2 and "give --store with a bucket that it reaches, and" in refused.stderr
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / CREDENTIALS).touch()
    done = curtail_here(*words, "--store", "s3://mine/runs", "--host", "superlink.example", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "curtail site run SPP_TX --linked --superlink superlink.example:8443 --ca ca.crt --key SPP_TX" in done.stdout


def test_names_and_paths_mean_what_they_say(tmp_path: Path) -> None:
    sites: list[dict[str, Any]] = [
        dict(EXPERIMENT["sites"][0], name=name, region="SPP_TX") for name in ("007", "superlink")
    ]
    found = written(tmp_path, sites=sites, secrets="/keys, of $mine", corpus={**EXPERIMENT["corpus"], "source": "/a$b"})
    assert found["services"]["site-007"]["command"][3] == "007"
    assert found["secrets"]["superlink.key"] == {"file": "/keys, of $$mine/superlink.key"}
    assert found["secrets"]["site-superlink.key"] == {"file": "/keys, of $$mine/sites/superlink"}
    (bound,) = [volume for volume in found["services"]["code"]["volumes"] if isinstance(volume, dict)]
    assert bound["source"] == "/a$$b"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"federation": {"replay": "own"}}, r"federation\.replay is own: .* has no torch; set it to spare"),
        ({"metrics": {"prometheus_port": 9400}}, r"metrics\.prometheus_port needs a package that .* has not; take it"),
        ({"metrics": {"wandb": "grid"}}, r"metrics\.wandb needs a package"),
    ],
)
def test_what_the_images_do_not_have_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        written(tmp_path, **changes)


def test_services_of_one_name_are_refused(tmp_path: Path) -> None:
    sites: list[dict[str, Any]] = [dict(EXPERIMENT["sites"][0], name=name, region="SPP_TX") for name in ("a_b", "A-B")]
    with pytest.raises(SettingsError, match="the service of site 'A-B' would be called 'site-a-b', as that of 'a_b'"):
        written(tmp_path, sites=sites)


def test_the_command_makes_secrets_once(tmp_path: Path) -> None:
    file, folder = tmp_path / "out" / "compose.yaml", tmp_path / "out" / "secrets"
    words = ("deploy", "compose", "-e", "laptop", "--file", str(file), "--host", "superlink.example")
    done = curtail_here(*words, home=tmp_path)
    assert done.returncode == 0, done.stderr
    first = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert curtail_here(*words, home=tmp_path).returncode == 0
    assert first == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and stat.S_IMODE((folder / "ca.key").stat().st_mode) == 0o600
    named = {
        (file.parent / secret["file"]).resolve() for secret in yaml.safe_load(file.read_text())["secrets"].values()
    }
    assert named and named <= {path.resolve() for path in first}
    shown = subprocess.run(
        ["openssl", "x509", "-in", str(folder / "superlink.crt"), "-noout", "-ext", "subjectAltName"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert all(f"DNS:{name}" in shown for name in ("superlink", "front", "superlink.example", "localhost"))


def test_another_host_gets_a_certificate_of_the_same_authority(tmp_path: Path) -> None:
    make_secrets(tmp_path, ["A"], ["one.example"], own_store=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    make_secrets(tmp_path, ["A"], ["one.example", "10.0.0.7"], own_store=True)
    changed = {path.name for path in tmp_path.iterdir() if path.is_file() and path.read_bytes() != before[path.name]}
    assert changed == {"superlink.crt", "superlink.key"}
    assert lacking_hosts(tmp_path / "superlink.crt", ["superlink", "one.example", "10.0.0.7"]) == []
    assert stat.S_IMODE((tmp_path / "superlink.key").stat().st_mode) == 0o644


def test_what_else_lies_in_the_folder_of_secrets_stays_as_it_is(tmp_path: Path) -> None:
    for name, mode in (("backup.sh", 0o750), ("other.key", 0o600)):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)
    make_secrets(tmp_path, ["A"], (), own_store=True)
    assert {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("backup.sh", "other.key", "sites/A")} == {
        "backup.sh": 0o750, "other.key": 0o600, "sites/A": 0o644,
    }  # fmt: skip


def test_the_images_have_what_the_services_name(laptop: dict[str, Any]) -> None:
    stages = read_dockerfile(ROOT / "Dockerfile")
    for target in ("control", "site"):
        stage = stages[target]
        assert (stage.user, stage.uid, stage.workdir) == ("curtail", 10001, "/app")
        assert {"curtail_pipeline", "assets", "sensors", "pyproject.toml"} <= set(stage.copies)
        for each in services(laptop, target).values():
            environment = {**stage.environment, **each["environment"]}
            assert environment.get("DAGSTER_HOME") in stage.folders and environment["CURTAIL_HOME"] in stage.folders
    assert stages["build-control"].dependencies == ["dependencies"]
    assert stages["build-site"].dependencies == ["dependencies", "site"]
    let_through = {word.removeprefix("!") for word in (ROOT / ".dockerignore").read_text().split() if word[0] == "!"}
    assert let_through == {name for stage in stages.values() for name in stage.copies}
    assert all((ROOT / name).exists() and not (ROOT / name).is_symlink() for name in let_through)


def test_credentials_of_live_signals_are_files_that_the_code_server_alone_has(tmp_path: Path) -> None:
    traces = {"provider": "watttime", "regions": {"CAISO_NORTH": "CAISO_NORTH"}}
    site = dict(EXPERIMENT["sites"][0], region="CAISO_NORTH")
    found = written(tmp_path, traces=traces, sites=[site], clock={"start": "2026-03-21T00:00:00Z"})["services"]
    names = ["watttime_user", "watttime_password"]
    assert found["code"]["environment"]["WATTTIME_PASSWORD_FILE"] == "/run/secrets/watttime_password"
    assert found["code"]["environment"]["CURTAIL_CLOCK"] == "live" and found["code"]["secrets"][-2:] == names
    assert not any(set(names) & set(map(str, each.get("secrets", ()))) for n, each in found.items() if n != "code")
    with pytest.raises(SettingsError, match="watttime_user does not exist; write WATTTIME_USER into it"):
        make_secrets(tmp_path / "secrets", [], (), True, names)
