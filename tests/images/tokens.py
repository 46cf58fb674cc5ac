"""A server of tokens for a registry, as large ones have one beside them: signed, short-lived."""

from __future__ import annotations

import base64
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

SERVICE, ISSUER = "test-registry", "test-tokens"


@dataclass(kw_only=True)
class Tokens:
    """One that runs: whom it knows, and the scopes it was asked for."""

    user: str
    secret: str
    pair: tuple[Path, Path]
    url: str = ""
    asked: list[str] = field(default_factory=list)

    def settings(self) -> dict[str, str]:
        """What a registry is told of it."""
        return {
            "REGISTRY_AUTH": "token",
            "REGISTRY_AUTH_TOKEN_REALM": self.url,
            "REGISTRY_AUTH_TOKEN_SERVICE": SERVICE,
            "REGISTRY_AUTH_TOKEN_ISSUER": ISSUER,
            "REGISTRY_AUTH_TOKEN_ROOTCERTBUNDLE": str(self.pair[0]),
        }


@contextmanager
def serving(user: str, secret: str, pair: tuple[Path, Path]) -> Iterator[Tokens]:
    """Run one until the block ends; `pair` is a certificate and its key."""
    tokens = Tokens(user=user, secret=secret, pair=pair)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            known = base64.b64encode(f"{tokens.user}:{tokens.secret}".encode()).decode()
            may = self.headers.get("Authorization", "") == f"Basic {known}"
            tokens.asked += query.get("scope", [])
            body = json.dumps({"token": _signed(query, tokens.pair, may)}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    tokens.url = f"http://127.0.0.1:{server.server_address[1]}/token"
    try:
        yield tokens
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _signed(query: dict[str, list[str]], pair: tuple[Path, Path], may: bool) -> str:
    """A token (RFC 7519, ES256) for the scopes asked for; without a password for none of them."""
    access = []
    for scope in query.get("scope", []) if may else []:
        kind, name, actions = scope.split(":")
        access.append({"type": kind, "name": name, "actions": actions.split(",")})
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": query["service"][0], "sub": "", "jti": secrets.token_hex(8)}
    claims |= {"exp": now + 60, "nbf": now - 60, "iat": now, "access": access}  # type: ignore[dict-item]
    der = x509.load_pem_x509_certificate(pair[0].read_bytes()).public_bytes(
        serialization.Encoding.DER
    )
    head = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(der).decode()]}
    text = f"{_word(json.dumps(head).encode())}.{_word(json.dumps(claims).encode())}"
    key = serialization.load_pem_private_key(pair[1].read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    r, s = decode_dss_signature(key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{text}.{_word(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _word(body: bytes) -> str:
    return base64.urlsafe_b64encode(body).rstrip(b"=").decode()
