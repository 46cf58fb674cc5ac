"""Signatures on bundles by Sigstore: an identity in the place of a key.

All of it is the `sigstore` package's work (`pip install edgekiln[sigstore]`): it gets a certificate
for the identity, signs, and enters the signature into the public log. That needs a network, to
Sigstore and to who vouches for the identity; to verify, its list of trusted keys is fetched once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekiln import offline
from edgekiln.bundle import SIGSTORE
from edgekiln.digest import cannot_read
from edgekiln.errors import FetchError, SignatureError, UsageError
from edgekiln.signing import PAYLOAD_TYPE, Verified, check_files, read_statement
from edgekiln.store import disk_error


def sign(bundle: Path) -> str:
    """Sign a bundle's provenance as whoever is logged in; returns the identity.

    In CI the job's own identity is taken, else a browser asks. Raises FetchError where Sigstore is
    out of reach, and what `signing.check_files` does.
    """
    payload = read_statement(bundle)
    check_files(bundle, payload)
    with _explained():
        from sigstore.dsse import Statement
        from sigstore.models import ClientTrustConfig
        from sigstore.oidc import IdentityToken, Issuer, detect_credential
        from sigstore.sign import SigningContext

        trusted = ClientTrustConfig.production()
        token = detect_credential()
        url = trusted.signing_config.get_oidc_url()
        identity = IdentityToken(token) if token else Issuer(url).identity_token()
        with SigningContext.from_trust_config(trusted).signer(identity) as signer:
            made = signer.sign_dsse(Statement(payload))
        name = str(identity.identity)
    try:
        (bundle / SIGSTORE).write_text(made.to_json() + "\n", encoding="utf-8", newline="\n")
    except OSError as error:
        raise disk_error(error, bundle) from error
    return name


def verify(bundle: Path, *, identity: str, issuer: str) -> Verified:
    """Check that this identity, vouched for by this issuer, signed the bundle as it is.

    Raises SignatureError for a signature that is missing or wrong, or a bundle that is not what
    was signed; FetchError where Sigstore's trusted keys cannot be had.
    """
    try:
        written = (bundle / SIGSTORE).read_bytes()
    except FileNotFoundError:
        why = f"it has no {SIGSTORE}"
        raise SignatureError(f"{bundle} is not signed by Sigstore", why=why) from None
    except OSError as error:
        raise cannot_read(bundle / SIGSTORE, error) from error
    with _explained():
        from sigstore.models import Bundle
        from sigstore.verify import Verifier
        from sigstore.verify.policy import Identity

        policy = Identity(identity=identity, issuer=issuer)
        made = Bundle.from_json(written)
        kind, payload = Verifier.production().verify_dsse(made, policy)
    if kind != PAYLOAD_TYPE or payload != read_statement(bundle):
        raise SignatureError(
            f"{bundle}: its provenance is not what was signed",
            remedy="get the bundle again, or have it signed again",
        )
    return Verified(keyid=identity, files=check_files(bundle, payload))


@contextmanager
def _explained() -> Iterator[None]:
    """The package's exceptions, and its absence, as errors with a remedy."""
    offline.refuse("Sigstore", remedy="a key of one's own needs nobody: --key FILE")
    try:
        yield
    except ImportError as error:
        raise UsageError(
            "Sigstore's package is not installed",
            why=str(error),
            remedy="put sigstore into edgekiln's environment: .venv/bin/pip install sigstore",
        ) from None
    except Exception as error:
        raise _translated(error) from error


def _translated(error: Exception) -> SignatureError | FetchError:
    """Its own words, sorted into what could not be reached and what does not hold."""
    from sigstore.errors import VerificationError
    from sigstore.models import InvalidBundle

    why = (" ".join(str(error).split()) or type(error).__name__)[:300]
    # What cannot be parsed is a ValueError, of pydantic's making.
    if isinstance(error, (VerificationError, InvalidBundle, ValueError)):
        remedy = "if identity and issuer are the right ones, do not use the bundle"
        return SignatureError("Sigstore's signature does not hold", why=why, remedy=remedy)
    remedy = "see that Sigstore can be reached, or sign with a key of your own: kiln sign DIR"
    return FetchError("Sigstore gave no answer that could be used", why=why, remedy=remedy)
