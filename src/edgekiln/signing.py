"""Signatures on bundles: the provenance statement in a DSSE envelope, with a key of the user's.

Formats: in-toto Attestation Framework, Envelope and Bundle (JSON lines); DSSE v1.0.2, whose
pre-authentication encoding is what gets signed. Keys are PEM as OpenSSL writes them, Ed25519 or
ECDSA on P-256 or P-384.

The statement is signed as the bytes that lie in provenance.json, and it names every file of the
bundle with its sha256. manifest.json has times and figures, and is not signed; `verify` compares
what it repeats of the statement.
"""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln.bundle import BESIDE, ENVELOPES, MANIFEST, PROVENANCE, everything, is_plain
from edgekiln.digest import cannot_read, digest_file
from edgekiln.errors import SignatureError, UsageError
from edgekiln.home import home
from edgekiln.store import disk_error

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    Private = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
    Public = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
_PASSWORD = "EDGEKILN_KEY_PASSWORD"
_STANDARD = bytes.maketrans(b"-_", b"+/")
_KINDS = "Ed25519, or ECDSA on P-256 or P-384"


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What a signature was found to say: whose key, and how many files it covers."""

    keyid: str
    files: int


def own_key() -> Path:
    """Where `new_key` puts the user's key; its public half lies beside it as .pub."""
    return home() / "keys" / "signing.pem"


def public_of(key: Path) -> Path:
    """Where the public half of a key lies."""
    return key.with_suffix(".pub")


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed, unambiguous without parsing."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def new_key(path: Path) -> Path:
    """Make an Ed25519 key; returns its public half's place.

    It is encrypted with EDGEKILN_KEY_PASSWORD where that is set. A key that is there stays: raises
    UsageError.
    """
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    public = public_of(path)
    if public == path:
        remedy = f"give another name with --key, e.g. {path.with_suffix('.pem').name}"
        raise UsageError(f"{path} is what the public half would be called", remedy=remedy)
    for there in (path, public):
        if there.exists() or there.is_symlink():
            raise UsageError(f"{there} is there already", remedy="give another place with --key")
    key = Ed25519PrivateKey.generate()
    password = os.environ.get(_PASSWORD, "").encode()
    hidden = form.BestAvailableEncryption(password) if password else form.NoEncryption()
    secret = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, hidden)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Made for this user alone from the start, and never over another file.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secret)
        with public.open("xb") as file:
            file.write(_pem(key.public_key()))
    except OSError as error:
        raise disk_error(error, path) from error
    return public


def keyid(key: Public) -> str:
    """sha256 (hex) of the key's SubjectPublicKeyInfo: a name, not a proof."""
    import hashlib

    from cryptography.hazmat.primitives import serialization as form

    der = key.public_bytes(form.Encoding.DER, form.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def sign(bundle: Path, key_file: Path) -> str:
    """Sign a bundle's provenance; returns the key's id.

    Signatures of other keys over the same statement stay. Raises SignatureError where the bundle
    is not what its provenance says: that is not signed.
    """
    key = load_private(key_file)
    payload = read_statement(bundle)
    check_files(bundle, payload)
    made = {"keyid": keyid(key.public_key()), "sig": _text(_signature(key, payload))}
    kept = [s for s in _signatures(bundle, payload) if s.get("keyid") != made["keyid"]]
    envelope = {
        "payload": _text(payload),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [*kept, made],
    }
    fresh = bundle / f".{ENVELOPES}"
    try:
        fresh.write_text(json.dumps(envelope) + "\n", encoding="utf-8", newline="\n")
        fresh.replace(bundle / ENVELOPES)
    except OSError as error:
        # A hidden file that is left would count as one too many.
        with suppress(OSError):
            fresh.unlink()
        raise disk_error(error, bundle) from error
    return made["keyid"]


def verify(bundle: Path, key_file: Path) -> Verified:
    """Check a bundle's signature by a public key, then every file against what was signed.

    Raises SignatureError for a signature that is missing, wrong or of another key, and for a
    bundle that is not what was signed.
    """
    key = load_public(key_file)
    name = keyid(key)
    envelopes = list(_envelopes(bundle))
    if not envelopes:
        raise SignatureError(
            f"{bundle} is not signed", why=f"it has no {ENVELOPES}", remedy="kiln sign DIR signs it"
        )
    payload = next((p for e in envelopes if (p := _signed(e, key)) is not None), None)
    if payload is None:
        keys = [str(s.get("keyid", "unnamed"))[:16] for e in envelopes for s in e["signatures"]]
        raise SignatureError(
            f"{bundle} has no signature of {key_file} that holds",
            why=f"the key is {name[:16]}…, the signatures name {', '.join(keys) or 'none'}",
            remedy="give the signer's public key with --key; if it is that, do not use the bundle",
        )
    if payload != read_statement(bundle):
        raise SignatureError(
            f"{bundle / PROVENANCE} is not what was signed",
            remedy="get the bundle again, or have it signed again",
        )
    return Verified(keyid=name, files=check_files(bundle, payload))


def read_statement(bundle: Path) -> bytes:
    """The bytes of a bundle's provenance.json. Raises UsageError where there is none."""
    try:
        return (bundle / PROVENANCE).read_bytes()
    except FileNotFoundError:
        raise UsageError(
            f"{bundle} has no {PROVENANCE}", remedy="give the folder of a finished bundle"
        ) from None
    except OSError as error:
        raise cannot_read(bundle / PROVENANCE, error) from error


def check_files(bundle: Path, payload: bytes) -> int:
    """Compare a bundle with the statement about it; returns how many files it names.

    Every file must be named, hidden ones too, and every name be a file of that sha256, no link to
    one; the manifest must tell of the same files. Raises SignatureError with the first name that
    is wrong.
    """
    told = _subjects(bundle, payload)
    there = dict(everything(bundle))
    for name, path in there.items():
        if not is_plain(path):
            raise _differs(bundle, f"{name} is a link, or no file", "bundles hold files alone")
    for name in sorted(told.keys() | (there.keys() - set(BESIDE))):
        if name not in there:
            raise _differs(bundle, f"{name} is missing", "the statement names it")
        if name not in told:
            raise _differs(bundle, f"{name} is no file of it", "the statement does not name it")
        found = digest_file(there[name])
        if found != told[name]:
            why = f"its sha256 is {found}, the statement says {told[name]}"
            raise _differs(bundle, f"{name} was changed", why)
    listed = _listed(bundle)
    if listed != told:
        name = min(n for n in listed.keys() | told.keys() if listed.get(n) != told.get(n))
        why = f"it tells of {name} otherwise than the statement"
        raise _differs(bundle, f"{MANIFEST} was changed", why)
    return len(told)


def _subjects(bundle: Path, payload: bytes) -> dict[str, str]:
    """{name: sha256} of a statement."""
    try:
        body = json.loads(payload)
        told = {str(s["name"]): str(s["digest"]["sha256"]) for s in body["subject"]}
        if body["_type"] != "https://in-toto.io/Statement/v1" or len(told) != len(body["subject"]):
            raise ValueError("not an in-toto Statement v1, or a name stands in it twice")
    except (ValueError, KeyError, TypeError) as error:
        raise SignatureError(
            f"{bundle / PROVENANCE} is no statement that can be checked",
            why=f"{type(error).__name__}: {error}",
            remedy="build the bundle again with this edgekiln",
        ) from None
    return told


def _listed(bundle: Path) -> dict[str, str]:
    """{name: sha256} of the manifest."""
    try:
        body = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
        return {str(name): str(file["sha256"]) for name, file in body["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _differs(bundle, f"{MANIFEST} cannot be read", str(error)) from None


def _differs(bundle: Path, what: str, why: str) -> SignatureError:
    remedy = "get the bundle again, or build it again; then it can be signed"
    return SignatureError(f"{bundle}: {what}", why=why, remedy=remedy)


def _envelopes(bundle: Path) -> Iterator[dict[str, Any]]:
    """The envelopes that lie beside a bundle's provenance; none where it is not signed."""
    path = bundle / ENVELOPES
    if not path.is_file():
        return
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            envelope = json.loads(line)
            if not isinstance(envelope["payloadType"], str):
                raise ValueError("payloadType is no text")
            _bytes(envelope["payload"])
            for signature in envelope["signatures"]:
                _bytes(signature["sig"])
            yield envelope
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SignatureError(
            f"{path} is no DSSE envelope",
            why=f"{type(error).__name__}: {error}",
            remedy="have the bundle signed again",
        ) from None


def _signatures(bundle: Path, payload: bytes) -> list[dict[str, Any]]:
    """The signatures there are over this very statement."""
    return [
        signature
        for envelope in _envelopes(bundle)
        if envelope["payloadType"] == PAYLOAD_TYPE and _bytes(envelope["payload"]) == payload
        for signature in envelope["signatures"]
    ]


def _signed(envelope: Mapping[str, Any], key: Public) -> bytes | None:
    """The payload, if one of the signatures is that key's; key ids are hints and not looked at."""
    if envelope["payloadType"] != PAYLOAD_TYPE:
        return None
    payload = _bytes(envelope["payload"])
    signatures = [_bytes(s["sig"]) for s in envelope["signatures"]]
    return payload if any(_holds(key, each, payload) for each in signatures) else None


def _signature(key: Private, payload: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    message = pae(PAYLOAD_TYPE, payload)
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(message)
    return key.sign(message, ec.ECDSA(_hash(key.curve)))


def _holds(key: Public, signature: bytes, payload: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    message = pae(PAYLOAD_TYPE, payload)
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, message)
        else:
            key.verify(signature, message, ec.ECDSA(_hash(key.curve)))
    except InvalidSignature:
        return False
    return True


def _hash(curve: ec.EllipticCurve) -> Any:
    """The hash that goes with a curve (as in ecdsa-sha2-nistp256 and -nistp384)."""
    from cryptography.hazmat.primitives import hashes

    return hashes.SHA384() if curve.name == "secp384r1" else hashes.SHA256()


def load_private(path: Path) -> Private:
    """A key to sign with.

    Raises UsageError for a file that is none, or of another kind, and for one that is not
    encrypted and that others can read: whoever has read it can sign as its owner.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    password = os.environ.get(_PASSWORD, "").encode() or None
    data = _read(path, "kiln sign --new-key makes one")
    try:
        key = load_pem_private_key(data, password)
    except TypeError as error:
        # Encrypted without a password, or a password for what is not encrypted.
        remedy = f"set {_PASSWORD}" if password is None else f"unset {_PASSWORD}"
        raise UsageError(f"{path} cannot be opened", why=str(error), remedy=remedy) from None
    except (ValueError, UnsupportedAlgorithm) as error:
        why = str(error).splitlines()[0][:200]
        remedy = f"give a private key in PEM; if it is one, see that {_PASSWORD} is right"
        raise UsageError(f"{path} is no key to sign with", why=why, remedy=remedy) from None
    if isinstance(key, (ed25519.Ed25519PrivateKey, ec.EllipticCurvePrivateKey)) and _taken(key):
        if password is None:
            _refuse_open(path)
        return key
    raise UsageError(f"{path} is a key of a kind that is not taken", remedy=f"give {_KINDS}")


def _refuse_open(path: Path) -> None:
    """Raise UsageError for a key that others can read; Windows has no such modes."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError(
            f"{path} is a key that others can read",
            why=f"its mode is {mode:04o}, and it is not encrypted",
            remedy=f"make it yours alone: chmod 600 {path}; if others had it, make a new one",
        )


def load_public(path: Path) -> Public:
    """A public key. Raises UsageError for a file that is none, or of another kind."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = _read(path, "give the signer's public key with --key")
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        why = str(error).splitlines()[0][:200]
        remedy = "give a public key in PEM, as `kiln sign --new-key` writes it"
        raise UsageError(f"{path} is no public key", why=why, remedy=remedy) from None
    if isinstance(key, (ed25519.Ed25519PublicKey, ec.EllipticCurvePublicKey)) and _taken(key):
        return key
    raise UsageError(f"{path} is a key of a kind that is not taken", remedy=f"give {_KINDS}")


def _taken(key: Private | Public) -> bool:
    curve = getattr(key, "curve", None)
    return curve is None or curve.name in ("secp256r1", "secp384r1")


def _read(path: Path, remedy: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"there is no key {path}", remedy=remedy) from None
    except OSError as error:
        raise cannot_read(path, error) from error


def _pem(key: Public) -> bytes:
    from cryptography.hazmat.primitives import serialization as form

    return key.public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: str) -> bytes:
    """DSSE lets an envelope be in the standard alphabet or in the one that is safe in addresses."""
    return base64.b64decode(text.encode("ascii").translate(_STANDARD), validate=True)
