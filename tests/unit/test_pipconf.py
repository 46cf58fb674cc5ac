"""pip's settings, as uv is told them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgekiln.user import pipconf
from edgekiln.user.aptconf import AptSettings
from edgekiln.user.pipconf import PipSettings, parse, pip_config_list, uv_environment


def test_pip_itself_is_asked_and_merges_its_files_and_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = tmp_path / "pip.conf"
    conf.write_text(
        "[global]\nindex-url = https://mirror.example/simple\ntimeout = 60\n"
        "[install]\nextra-index-url =\n  https://a.example/simple\n  https://b.example/simple\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(conf))
    monkeypatch.setenv("PIP_TIMEOUT", "7")
    monkeypatch.setattr(pipconf, "pip_command", lambda: [sys.executable, "-m", "pip"])
    found = parse(pip_config_list(), {})
    assert found.index_url == "https://mirror.example/simple"
    assert found.extra_index_urls == ("https://a.example/simple", "https://b.example/simple")
    assert found.timeout == 7


def test_without_pip_its_environment_still_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipconf, "pip_command", lambda: None)
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels https://w.example/list.html")
    found = parse(pip_config_list(), {})
    assert found.find_links == ("/wheels", "https://w.example/list.html")


def test_a_section_for_installing_and_the_environment_win_over_global() -> None:
    lines = "install.index-url='b'\nglobal.index-url='a'\n:env:.cert='/e.pem'\nglobal.cert='/g'\n"
    found = parse(lines, {})
    assert (found.index_url, found.cert) == ("b", "/e.pem")


def test_a_variable_set_to_nothing_does_not_hide_the_file() -> None:
    assert parse("global.index-url='a'\n:env:.index-url=''\n", {}).index_url == "a"


def test_proxies_come_from_either_case_and_pips_own_wins() -> None:
    environ = {"http_proxy": "http://p:1", "HTTPS_PROXY": "http://p:2", "NO_PROXY": "i.example"}
    assert parse("", environ).proxies == {
        "HTTP_PROXY": "http://p:1",
        "HTTPS_PROXY": "http://p:2",
        "NO_PROXY": "i.example",
    }
    assert parse("global.proxy='http://q:3'\n", environ).proxies["HTTPS_PROXY"] == "http://q:3"


def test_certificates_fall_back_to_what_other_tools_are_told() -> None:
    assert parse("", {"SSL_CERT_FILE": "/a.pem", "REQUESTS_CA_BUNDLE": "/b.pem"}).cert == "/a.pem"
    assert parse("global.cert='/c.pem'\n", {"SSL_CERT_FILE": "/a.pem"}).cert == "/c.pem"


def test_uv_is_told_the_same_places_in_pips_sense(tmp_path: Path) -> None:
    pip = PipSettings(
        index_url="https://mirror.example/simple",
        extra_index_urls=(f"file://{tmp_path}", "https://a.example/simple"),
        find_links=(str(tmp_path), "https://w.example/list.html"),
        trusted_hosts=("mirror.example",),
        timeout=60,
        proxies={"HTTPS_PROXY": "http://p:1"},
    )
    assert uv_environment(pip) == {
        "UV_NO_CONFIG": "1",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_DEFAULT_INDEX": "https://mirror.example/simple",
        "UV_INDEX": f"file://{tmp_path} https://a.example/simple",
        "UV_FIND_LINKS": f"{tmp_path},https://w.example/list.html",
        "UV_INSECURE_HOST": "mirror.example",
        "UV_HTTP_TIMEOUT": "60",
        "HTTPS_PROXY": "http://p:1",
    }


def test_a_container_is_told_nothing_of_this_machines_folders(tmp_path: Path) -> None:
    pip = PipSettings(
        index_url=f"file://{tmp_path}",
        extra_index_urls=(f"file://{tmp_path}", "https://a.example/simple"),
        find_links=(str(tmp_path), f"file://{tmp_path}", "https://w.example/list.html"),
    )
    env = uv_environment(pip, remote_only=True)
    assert str(tmp_path) not in str(env)
    assert env["UV_INDEX"] == "https://a.example/simple"
    assert env["UV_FIND_LINKS"] == "https://w.example/list.html"


def test_folders_and_file_indexes_are_known_as_such(tmp_path: Path) -> None:
    links, index = tmp_path / "with space", tmp_path / "simple"
    links.mkdir()
    index.mkdir()
    pip = PipSettings(
        extra_index_urls=(index.as_uri(), "https://a.example/simple"),
        find_links=(links.as_uri(), str(tmp_path / "not there"), "https://w.example/"),
    )
    assert pip.folders() == [links]
    assert pip.file_indexes() == [index]


def test_apts_certificate_is_moved_to_where_the_build_sees_it() -> None:
    options = (("Acquire::https::CaInfo", "/home/u/ca.pem"), ("Acquire::Retries", "3"))
    apt = AptSettings(options=options)
    assert "/home/u/ca.pem" in apt.conf()
    inside = apt.conf(ca="/run/secrets/ca")
    assert "/home/u" not in inside
    assert 'Acquire::https::CaInfo "/run/secrets/ca";' in inside
    assert 'Acquire::Retries "3";' in inside


def test_pips_no_index_is_an_index_of_nothing_to_uv() -> None:
    more = ("https://more.example.org/simple",)
    pip = PipSettings(index_url="https://index.example.org/simple", extra_index_urls=more)
    assert uv_environment(pip)["UV_INDEX"] == more[0]
    none = uv_environment(PipSettings(**{**vars(pip), "no_index": True, "find_links": ("/w",)}))
    assert "UV_INDEX" not in none and none["UV_FIND_LINKS"] == "/w"
    assert none["UV_DEFAULT_INDEX"] == "file:///nonexistent/simple"
