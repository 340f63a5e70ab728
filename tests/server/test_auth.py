"""Authentication: API keys, the admin key, and calls from this machine."""

from __future__ import annotations

import pytest

from tests.server.fake_engine import FakeEngine, call, error

TWO = {"replicas": 2}
ELSEWHERE = ("192.0.2.7", 5000)


def scale(engine: FakeEngine, *, key: str | None = None, headers=None, **options):
    headers = dict(headers or {})
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    return call(engine, "POST", "/scale", TWO, headers=headers, **options)


def refused(response, status: int) -> str:
    return error(response, status)["code"]


class TestWithoutAnAdminKey:
    @pytest.mark.parametrize(
        "url",
        ["http://localhost", "http://127.0.0.1:8000", "http://[::1]:8000", "http://LOCALHOST"],
    )
    @pytest.mark.parametrize("client", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
    def test_this_machine_may_change_the_server(self, client, url):
        engine = FakeEngine()
        assert scale(engine, client=(client, 5000), url=url).status_code == 200
        assert engine.scaled == [(2, None)]

    @pytest.mark.parametrize("address", ["192.0.2.7", "10.0.0.1", "2001:db8::1", "::ffff:10.0.0.1"])
    def test_other_machines_may_not(self, address):
        engine = FakeEngine()
        assert refused(scale(engine, client=(address, 5000)), 403) == "forbidden"
        assert engine.scaled == []

    @pytest.mark.parametrize(
        "url", ["http://evil.example", "http://localhost.evil.example", "http://10.0.0.1:8000"]
    )
    def test_a_foreign_host_name_is_refused(self, url):
        """Such a name may lead to this machine: DNS is in the hands of others."""
        engine = FakeEngine()
        assert refused(scale(engine, url=url), 403) == "forbidden"
        assert engine.scaled == []

    @pytest.mark.parametrize(
        "origin", ["http://evil.example", "null", "http://localhost.evil.example", "http://[", ""]
    )
    def test_web_pages_of_other_origins_are_refused(self, origin):
        engine = FakeEngine()
        assert refused(scale(engine, headers={"Origin": origin}), 403) == "forbidden"
        assert engine.scaled == []

    def test_a_web_page_of_this_machine_is_accepted(self):
        response = scale(FakeEngine(), headers={"Origin": "http://localhost:3000"})
        assert response.status_code == 200

    @pytest.mark.parametrize(
        "kind",
        ["text/plain", "application/x-www-form-urlencoded", "", "text/plain;application/json"],
    )
    def test_only_json_is_accepted(self, kind):
        """A page may send these to any server without asking it first."""
        engine = FakeEngine()
        headers = {"Content-Type": kind}
        response = call(engine, "POST", "/scale", content=b'{"replicas": 2}', headers=headers)
        assert refused(response, 415) == "unsupported_media_type"
        assert engine.scaled == []

    def test_json_with_a_charset_is_json(self):
        headers = {"Content-Type": "Application/JSON; charset=utf-8"}
        response = call(FakeEngine(), "POST", "/scale", content=b'{"replicas": 2}', headers=headers)
        assert response.status_code == 200

    @pytest.mark.parametrize(
        "name",
        [
            "X-Forwarded-For",
            "X-Forwarded-Proto",
            "Forwarded",
            "X-Real-IP",
            "Via",
            "CF-Connecting-IP",
        ],
    )
    def test_forwarded_requests_count_as_those_of_other_machines(self, name):
        engine = FakeEngine()
        assert refused(scale(engine, headers={name: "127.0.0.1"}), 403) == "forbidden"
        assert engine.scaled == []

    def test_a_browser_s_header_for_cross_site_requests_is_respected(self):
        engine = FakeEngine()
        assert refused(scale(engine, headers={"Sec-Fetch-Site": "cross-site"}), 403) == "forbidden"
        assert engine.scaled == []

    def test_the_api_key_is_still_required(self):
        engine = FakeEngine()
        assert scale(engine, api_keys=["one"]).status_code == 401
        assert engine.scaled == []
        assert scale(engine, key="one", api_keys=["one"]).status_code == 200

    def test_a_tenant_on_another_machine_may_not(self):
        engine = FakeEngine()
        response = scale(engine, key="two", api_keys=["one", "two"], client=ELSEWHERE)
        assert refused(response, 403) == "forbidden"
        assert engine.scaled == []


class TestWithAnAdminKey:
    @pytest.mark.parametrize("url", ["http://localhost", "http://sarathi.example"])
    @pytest.mark.parametrize("client", [("127.0.0.1", 1), ELSEWHERE])
    def test_it_opens_from_everywhere(self, client, url):
        engine = FakeEngine()
        response = scale(
            engine, key="root", api_keys=["one"], admin_keys=["root"], client=client, url=url
        )
        assert response.status_code == 200
        assert engine.scaled == [(2, None)]

    @pytest.mark.parametrize("key", [None, "wrong", ""])
    def test_nothing_else_does(self, key):
        engine = FakeEngine()
        assert refused(scale(engine, key=key, admin_keys=["root"]), 401) == "invalid_api_key"
        assert engine.scaled == []

    def test_an_api_key_is_not_enough(self):
        engine = FakeEngine()
        response = scale(engine, key="one", api_keys=["one"], admin_keys=["root"])
        assert refused(response, 403) == "forbidden"
        assert engine.scaled == []

    def test_it_is_no_api_key(self):
        headers = {"Authorization": "Bearer root"}
        response = call(
            FakeEngine(),
            "GET",
            "/v1/models",
            headers=headers,
            api_keys=["one"],
            admin_keys=["root"],
        )
        assert response.status_code == 401

    def test_other_paths_need_no_key_for_it(self):
        assert call(FakeEngine(), "GET", "/v1/models", admin_keys=["root"]).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-api-key": "two"}, 200),
        ({"x-api-key": "wrong"}, 401),
        ({"x-api-key": ""}, 401),
        ({"x-api-key": "Bearer two"}, 401),
        ({"x-api-key": "two", "Authorization": "Bearer wrong"}, 200),
        ({"x-api-key": "wrong", "Authorization": "Bearer two"}, 200),
        ({"Authorization": "two"}, 401),
        ({"Authorization": "Basic two"}, 401),
    ],
)
def test_a_key_may_come_in_the_header_of_anthropics_clients(headers, status):
    keys = ["one", "two"]
    response = call(FakeEngine(), "GET", "/v1/models", headers=headers, api_keys=keys)
    assert response.status_code == status


def test_each_key_is_a_tenant_in_either_header():
    engine = FakeEngine()
    body = {"prompt": "p", "user": "someone"}
    for headers in ({"x-api-key": "two"}, {"Authorization": "Bearer two"}):
        call(engine, "POST", "/v1/completions", body, headers=headers, api_keys=["one", "two"])
    assert [each.scheduling.tenant for each in engine.generations] == ["key 2", "key 2"]


def test_the_admin_key_opens_in_either_header():
    headers = {"x-api-key": "root"}
    response = call(
        FakeEngine(), "POST", "/scale", TWO, headers=headers, client=ELSEWHERE, admin_keys=["root"]
    )
    assert response.status_code == 200


ODD = ["/scale%0A", "/scale%0D%0A", "//scale", "/scale/", "/%73cale", "/scale;x", "/./scale"]


@pytest.mark.parametrize("path", ODD)
@pytest.mark.parametrize("keys", [{}, {"admin_keys": ["root"], "api_keys": ["one"]}])
def test_unusual_spellings_of_the_path_do_not_bypass_the_check(path, keys):
    engine = FakeEngine()
    headers = {"Authorization": "Bearer one"}
    response = call(engine, "POST", path, TWO, headers=headers, client=ELSEWHERE, **keys)
    assert response.status_code in (403, 404, 405)
    assert engine.scaled == []


@pytest.mark.parametrize(
    "path", ["/v1/models%0A", "/health%0A", "//health", "/health/", "/metrics%0A"]
)
def test_unusual_spellings_of_a_path_need_the_key(path):
    assert call(FakeEngine(), "GET", path, api_keys=["one"]).status_code == 401


@pytest.mark.parametrize("keys", [{}, {"admin_keys": ["root"]}, {"api_keys": ["one"]}])
def test_a_preflight_allows_no_page_to_change_the_server(keys):
    headers = {
        "Origin": "http://evil.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,authorization",
    }
    response = call(FakeEngine(), "OPTIONS", "/scale", headers=headers, **keys)
    assert response.status_code >= 400
    assert not [name for name in response.headers if name.startswith("access-control-allow")]
