"""The commands for models, accounts, keys, health and administration."""

import json
from pathlib import Path

import pytest

from omnigate import Client
from omnigate.testing import LocalGateway, Status

from .conftest import Cli


def test_me_shows_the_project_without_the_key(gateway: LocalGateway, cli: Cli) -> None:
    done = cli("me")
    assert (done.code, done.err) == (0, "")
    fields = dict(line.split("  ", 1) for line in done.out.splitlines())
    assert fields["daily budget"].strip() == "unlimited"
    assert fields["providers"].strip() == "anthropic, gemini, openai"
    assert gateway.api_key not in done.out
    assert cli("me", "--json").json["configured_providers"] == ["anthropic", "gemini", "openai"]


def test_models_are_a_table_with_prices(gateway: LocalGateway, cli: Cli) -> None:
    done = cli("models")
    header, *rows = done.out.splitlines()
    assert header.split() == ["model", "provider", "input", "output"]
    assert ["gpt-4o-mini", "openai", "0.15", "0.60"] in [row.split() for row in rows]
    assert done.err == "Prices in USD per million tokens.\n"


def test_models_can_be_filtered_and_sorted(gateway: LocalGateway, cli: Cli) -> None:
    found = cli("models", "4o", "MINI", "--provider", "OpenAI", "--json").json
    assert [model["id"] for model in found] == ["gpt-4o-mini"]
    prices = [
        model["pricing"]["input_per_1k_usd"]
        for model in cli("models", "claude", "--sort", "price", "--json").json
    ]
    assert prices == sorted(prices)
    none = cli("models", "nothing")
    assert (none.code, none.out) == (0, "")
    assert "matches" in none.err


def test_models_without_a_price_or_with_a_hostile_name_are_shown(gateway: LocalGateway, cli: Cli) -> None:
    gateway.script(Status(200, {"data": [{"id": "a\x1b[2J\nb"}]}), times=2)
    assert cli("models").out.splitlines()[1].split() == ["a\\x1b[2J\\nb", "-", "-"]
    assert cli("models", "--json").json[0]["id"] == "a\x1b[2J\nb"


def test_keys_are_created_listed_and_revoked(gateway: LocalGateway, cli: Cli) -> None:
    created = cli("keys", "create", "ci")
    key = created.out.strip()
    assert "shown only this once" in created.err
    assert key not in created.err
    with Client(key, base_url=gateway.url) as client:
        assert client.me().project_id
    (listed,) = [each for each in cli("keys", "list", "--json").json if each["name"] == "ci"]
    table = cli("keys", "list")
    assert listed["id"] in table.out
    assert key not in table.out
    revoked = cli("keys", "revoke", listed["id"])
    assert (revoked.code, revoked.out) == (0, "")
    assert cli("me", "--api-key", key).code == 4
    assert cli("keys", "create", "other", "--json").json["api_key"].startswith("llmg_")
    assert cli("keys", "revoke", listed["id"], "--json").json == {"id": listed["id"], "revoked": True}
    assert cli("keys", "revoke", "0b4e2d0e-6f0a-4c3c-9a52-6a1f3e1f8a11").code == 1


def test_a_project_without_keys_says_so(gateway: LocalGateway, cli: Cli) -> None:
    gateway.script(Status(200, []), times=2)
    assert cli("keys", "list").err == "The project has no named keys.\n"
    assert cli("keys", "list", "--json").json == []


def test_a_provider_key_is_read_from_standard_input(gateway: LocalGateway, cli: Cli) -> None:
    done = cli("provider-key", "set", "openai", input="sk-my-own-secret-key\n")
    assert (done.code, done.out, done.err) == (0, "", "Stored the openai key.\n")
    assert json.loads(gateway.requests[-1].body)["api_key"] == "sk-my-own-secret-key"
    done = cli("provider-key", "set", "gemini", "--json", input="another-secret")
    assert done.json == {"provider": "gemini", "stored": True}


def test_an_azure_key_needs_its_endpoint_and_deployment(gateway: LocalGateway, cli: Cli) -> None:
    azure = ["provider-key", "set", "azure"]
    assert "azure needs --endpoint and --deployment" in cli(*azure, input="secret-key").err
    where = ["--endpoint", "https://acme.openai.azure.com", "--deployment", "gpt-4o"]
    assert cli(*azure, *where, input="secret-key").code == 0
    assert json.loads(gateway.requests[-1].body)["meta"] == {"endpoint": where[1], "deployment": "gpt-4o"}
    assert cli("provider-key", "set", "openai", *where, input="secret-key").code == 2


def test_a_missing_or_short_provider_key_is_a_usage_error(gateway: LocalGateway, cli: Cli) -> None:
    assert cli("provider-key", "set", "openai").code == 2
    done = cli("provider-key", "set", "openai", input="hush")
    assert done.code == 2
    assert "hush" not in done.err


def test_signup_prints_the_key_and_nothing_else_on_standard_output(gateway: LocalGateway, cli: Cli) -> None:
    done = cli("signup", "dev@acme.test", "--org", "Acme")
    assert done.code == 0
    key = done.out.strip()
    assert cli("me", "--api-key", key, "--json").json["key_prefix"] == key[:12]
    assert "Signed up dev@acme.test" in done.err
    assert cli("signup", "dev2@acme.test", "--json").json["email"] == "dev2@acme.test"


def test_signup_can_save_the_key_in_a_new_profile(
    gateway: LocalGateway, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = cli("signup", "dev3@acme.test", "--save", "--profile", "acme")
    assert (done.code, done.out) == (0, "")
    assert "Saved the key in the profile 'acme'" in done.err
    monkeypatch.delenv("OMNIGATE_API_KEY")
    monkeypatch.delenv("OMNIGATE_BASE_URL")
    assert cli("me").code == 0


def test_signup_prints_the_key_if_it_cannot_be_saved(gateway: LocalGateway, cli: Cli, home: Path) -> None:
    (home / "config").write_text("in the way")
    done = cli("signup", "dev4@acme.test", "--save")
    assert (done.code, done.out[:5]) in {(0, "llmg_"), (1, "")}
    if done.code:  # noticed before the account was made
        assert not [request for request in gateway.requests if b"dev4@acme.test" in request.body]


def test_signup_keeps_a_key_that_a_full_disk_refused(
    gateway: LocalGateway, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("omnigate.cli._frame.profiles.os.fsync", full)
    done = cli("signup", "dev5@acme.test", "--save")
    assert (done.code, done.out[:5]) == (0, "llmg_")
    assert "Warning: the key could not be saved in " in done.err


def test_health_exits_with_0_only_if_everything_works(gateway: LocalGateway, cli: Cli) -> None:
    good = cli("health")
    assert good.code == 0
    assert [line.split()[0] for line in good.out.splitlines()] == ["gateway", "database", "cache", "ready"]
    assert cli("health", "--json").json["ready"] is True
    broken = Status(503, {"status": "not_ready", "checks": {"database": "ok", "redis": "error"}})
    gateway.script(broken, path="/health/ready", times=2)
    bad = cli("health")
    assert bad.code == 1
    assert [line.split() for line in bad.out.splitlines()][2:] == [["cache", "error"], ["ready", "no"]]
    bad = cli("health", "--json")
    assert (bad.code, bad.json["ready"]) == (1, False)


def test_health_needs_no_key_and_does_not_retry(
    cli: Cli, gateway: LocalGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMNIGATE_API_KEY")
    assert cli("health").code == 0
    gateway.script(Status(503, b""), path="/health", times=9)
    before = len(gateway.requests)
    assert cli("health").code == 1
    assert len(gateway.requests) == before + 1


def test_admin_creates_and_lists_organisations_and_projects(gateway: LocalGateway, cli: Cli) -> None:
    org_id = cli("admin", "orgs", "create", "Acme", "--daily-budget", "12.5").out.strip()
    orgs = {org["id"]: org for org in cli("admin", "orgs", "list", "--json").json}
    assert float(orgs[org_id]["daily_budget"]) == 12.5
    assert org_id in cli("admin", "orgs", "list").out
    created = cli("admin", "projects", "create", org_id, "nightly", "--rate-limit", "600")
    key = created.out.strip()
    assert cli("me", "--api-key", key, "--json").json["rate_limit_per_min"] == 600
    (project,) = cli("admin", "projects", "list", "--org", org_id, "--json").json
    assert project["name"] == "nightly"
    shown = cli("admin", "projects", "list", "--org", org_id)
    assert "nightly" in shown.out
    assert key not in shown.out
    assert cli("admin", "projects", "create", org_id, "second", "--json").json["api_key"].startswith("llmg_")
    assert cli("admin", "orgs", "create", "B", "--json").json["name"] == "B"
    metrics = cli("admin", "metrics", org_id, "--json").json
    assert (metrics["scope"], metrics["totals"]["requests"]) == ("org", 0)
    assert cli("admin", "metrics", "0b4e2d0e-6f0a-4c3c-9a52-6a1f3e1f8a11").code == 1


def test_an_amount_that_is_no_number_is_a_usage_error(gateway: LocalGateway, cli: Cli) -> None:
    done = cli("admin", "orgs", "create", "Acme", "--daily-budget", "much")
    assert done.code == 2
    assert "daily_budget must be" in done.err
