"""`kiln bundle`, `package`, `sign`, `verify signature`: what was built, looked at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln.errors import UsageError

if TYPE_CHECKING:
    from edgekiln.problems import Problem


def bundle_lint(folder: str, *, model: str) -> None:
    """Print what is wrong with a Genie bundle. Raises BundleError where there are errors."""
    from edgekiln.genie import lint

    place = Path(folder).expanduser()
    problems = lint(place, Path(model).expanduser() if model else None)
    why = "Genie or the phone would refuse the bundle, or answer wrongly"
    _tell_problems(place, problems, "nothing found", why)


def sign(folder: str, *, key: str, new_key: bool, sigstore: bool) -> None:
    """Make a key, sign a bundle, or both."""
    from edgekiln import signing

    if not folder and not new_key:
        raise UsageError("which bundle?", remedy="kiln sign DIR, or kiln sign --new-key")
    if sigstore and (key or new_key):
        raise UsageError("--sigstore signs without a key", remedy="leave out --key and --new-key")
    place = Path(key).expanduser() if key else signing.own_key()
    if new_key:
        print(f"key: {place}; its public half, to give away: {signing.new_key(place)}")
    if not folder:
        return
    bundle = Path(folder).expanduser()
    if sigstore:
        from edgekiln import keyless

        print(f"{bundle}: signed by Sigstore for {keyless.sign(bundle)}")
    else:
        print(f"{bundle}: signed with the key {signing.sign(bundle, place)[:16]}…")


def verify_signature(folder: str, *, key: str, identity: str, issuer: str) -> None:
    """Print whose signature a bundle has. Raises SignatureError where it does not hold."""
    from edgekiln import signing

    bundle = Path(folder).expanduser()
    if identity or issuer:
        if key or not (identity and issuer):
            raise UsageError(
                "Sigstore needs who signed and who vouches for them, and no key",
                remedy="give --identity and --issuer, or --key alone",
            )
        from edgekiln import keyless

        found = keyless.verify(bundle, identity=identity, issuer=issuer)
        print(f"{bundle}: signed by {identity}; its {found.files} files are what was signed")
        return
    place = Path(key).expanduser() if key else signing.public_of(signing.own_key())
    found = signing.verify(bundle, place)
    print(f"{bundle}: signed with {place} ({found.keyid[:16]}…)")
    print(f"its {found.files} files are what was signed")


def package_check(file: str) -> None:
    """Print what is wrong with a package's configuration. Raises BundleError for errors."""
    from edgekiln.backends.mlc_package import check_file

    place = Path(file).expanduser()
    why = "mlc_llm package would end with them, after minutes; or the app, when it runs"
    _tell_problems(place, check_file(place), "every model has its library", why)


def _tell_problems(place: Path, problems: list[Problem], none: str, why: str) -> None:
    """Print problems, or that there are none. Raises BundleError where one is an error."""
    from edgekiln.errors import BundleError

    print("\n".join(p.text for p in problems) or f"{place}: {none}")
    if errors := sum(p.level == "error" for p in problems):
        raise BundleError(
            f"{place}: {errors} {'errors' if errors > 1 else 'error'}",
            why=why,
            remedy="each line above says what to do",
        )
