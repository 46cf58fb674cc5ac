"""Signatures: DSSE as securesystemslib understands it, and every way a bundle can be tampered."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey

from edgekiln import keyless, signing
from edgekiln.bundle import ENVELOPES, MANIFEST, PROVENANCE, SIGSTORE, write_bundle
from edgekiln.commands import bundles as commands
from edgekiln.digest import FileIndex
from edgekiln.errors import KilnError, SignatureError, UsageError
from tests.unit.test_bundle import ABOUT
from tests.unit.test_cli import kiln


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    source = tmp_path / "llm.mnn"
    source.write_bytes(b"graph")
    place, index = tmp_path / "b", FileIndex(tmp_path / "index.sqlite")
    files = {"llm.mnn": source, "deep/er.bin": source}
    write_bundle(place, files, "# phone\n", ABOUT, index, predicate={"buildDefinition": {}})
    return place


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "keys" / "release.pem"
    signing.new_key(path)
    return path


def written(key: Any, path: Path) -> Path:
    """A private key and its public half as OpenSSL would write them."""
    pem, plain = form.Encoding.PEM, form.NoEncryption()
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(pem, form.PrivateFormat.PKCS8, plain))
    public = key.public_key().public_bytes(pem, form.PublicFormat.SubjectPublicKeyInfo)
    signing.public_of(path).write_bytes(public)
    return path


def envelope(bundle: Path) -> dict[str, Any]:
    text = (bundle / ENVELOPES).read_text()
    assert text.count("\n") == 1 and text.endswith("\n")
    body: dict[str, Any] = json.loads(text)
    return body


def their_key(path: Path) -> SSlibKey:
    """A public key as securesystemslib has it, by our name for it."""
    public = form.load_pem_public_key(signing.public_of(path).read_bytes())
    return SSlibKey.from_crypto(public, keyid=signing.keyid(signing.load_public(
        signing.public_of(path))))  # fmt: skip


def test_what_was_signed_is_verified(bundle: Path, key: Path) -> None:
    named = signing.sign(bundle, key)
    found = signing.verify(bundle, signing.public_of(key))
    assert (found.keyid, found.files) == (named, 3)


@pytest.mark.parametrize("kind", ["ed25519", "p256", "p384"])
def test_securesystemslib_takes_our_envelope(bundle: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "k.pem"
    if kind == "ed25519":
        signing.new_key(path)
    else:
        curve = ec.SECP256R1() if kind == "p256" else ec.SECP384R1()
        written(ec.generate_private_key(curve), path)
    signing.sign(bundle, path)
    signing.verify(bundle, signing.public_of(path))
    theirs = Envelope.from_dict(envelope(bundle))
    assert theirs.payload == (bundle / PROVENANCE).read_bytes()
    assert theirs.pae() == signing.pae(signing.PAYLOAD_TYPE, theirs.payload)
    assert theirs.verify([their_key(path)], 1)
    theirs.payload += b" "
    with pytest.raises(VerificationError):
        theirs.verify([their_key(path)], 1)


def test_we_take_securesystemslibs_envelope(bundle: Path, key: Path) -> None:
    private: Any = signing.load_private(key)
    signer = CryptoSigner(private, their_key(key))
    theirs = Envelope((bundle / PROVENANCE).read_bytes(), signing.PAYLOAD_TYPE, {})
    theirs.sign(signer)
    (bundle / ENVELOPES).write_text(json.dumps(theirs.to_dict()) + "\n")
    assert signing.verify(bundle, signing.public_of(key)).files == 3


def test_the_encoding_is_the_specifications_example() -> None:
    assert signing.pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_several_keys_sign_one_statement(bundle: Path, key: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    signing.new_key(other)
    for each in (key, other, key):
        signing.sign(bundle, each)
    assert len(envelope(bundle)["signatures"]) == 2
    for each in (key, other):
        signing.verify(bundle, signing.public_of(each))


def test_either_alphabet_of_base64_is_read(bundle: Path, key: Path) -> None:
    signing.sign(bundle, key)
    body = envelope(bundle)
    safe = str.maketrans("+/", "-_")
    body["payload"] = body["payload"].translate(safe)
    body["signatures"][0]["sig"] = body["signatures"][0]["sig"].translate(safe)
    (bundle / ENVELOPES).write_text(json.dumps(body) + "\n")
    assert signing.verify(bundle, signing.public_of(key)).files


@pytest.mark.parametrize("field", ["payload", "payloadType", "signatures"])
@pytest.mark.parametrize("value", [1, None, ["x"], {"a": 1}, "ä"])
def test_what_is_no_envelope_is_refused(bundle: Path, key: Path, field: str, value: Any) -> None:
    signing.sign(bundle, key)
    (bundle / ENVELOPES).write_text(json.dumps({**envelope(bundle), field: value}) + "\n")
    with pytest.raises(SignatureError):
        signing.verify(bundle, signing.public_of(key))


def test_signing_again_gives_the_same_bytes(bundle: Path, key: Path) -> None:
    signing.sign(bundle, key)
    before = (bundle / ENVELOPES).read_bytes()
    signing.sign(bundle, key)
    assert (bundle / ENVELOPES).read_bytes() == before


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


def linked(bundle: Path, name: str) -> None:
    """The same bytes, but not in the bundle."""
    place = (bundle / name).rename(bundle.parent / f"outside-{name}")
    (bundle / name).symlink_to(place)


HARMS = {
    "a changed file": (lambda b: flip(b / "llm.mnn"), "llm.mnn was changed"),
    "a missing file": (lambda b: (b / "deep" / "er.bin").unlink(), "deep/er.bin is missing"),
    "a further file": (lambda b: (b / "more").write_text("x"), "more is no file of it"),
    "a hidden file": (lambda b: (b / ".more").write_text("x"), ".more is no file of it"),
    "a link in a file's place": (lambda b: linked(b, "llm.mnn"), "llm.mnn is a link, or no file"),
    "a link to the statement": (lambda b: linked(b, PROVENANCE), "provenance.json is a link"),
    "a hidden link to a folder": (
        lambda b: (b / ".all").symlink_to(b.parent, target_is_directory=True),
        ".all is a link, or no file",
    ),
    "a folder that leads to itself": (
        lambda b: (b / "deep" / "again").symlink_to("..", target_is_directory=True),
        "deep/again is a link, or no file",
    ),
    "a pipe": (lambda b: os.mkfifo(b / "pipe"), "pipe is a link, or no file"),
    "other words for the phone": (lambda b: flip(b / "README.md"), "README.md was changed"),
    "another statement": (lambda b: flip(b / PROVENANCE), "not what was signed"),
    "no manifest": (lambda b: (b / MANIFEST).unlink(), "manifest.json cannot be read"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_bundle_that_was_touched_is_refused(bundle: Path, key: Path, harm: str) -> None:
    signing.sign(bundle, key)
    touch, told = HARMS[harm]
    touch(bundle)
    with pytest.raises(SignatureError, match=told):
        signing.verify(bundle, signing.public_of(key))


def test_a_changed_file_is_told_with_both_digests(bundle: Path, key: Path) -> None:
    signing.sign(bundle, key)
    (bundle / "llm.mnn").write_bytes(b"grapH")
    with pytest.raises(SignatureError) as caught:
        signing.verify(bundle, signing.public_of(key))
    assert caught.value.why.count("sha256") == 1
    assert len([w for w in caught.value.why.replace(",", " ").split() if len(w) == 64]) == 2
    assert caught.value.exit_code == 19


def test_a_manifest_of_other_files_is_refused(bundle: Path, key: Path) -> None:
    signing.sign(bundle, key)
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["files"]["llm.mnn"]["sha256"] = "0" * 64
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(SignatureError, match=r"manifest\.json was changed"):
        signing.verify(bundle, signing.public_of(key))


def test_a_statement_of_ones_own_needs_a_signature_of_ones_own(bundle: Path, key: Path) -> None:
    """Files, manifest and statement all changed to fit each other: the payload gives it away."""
    signing.sign(bundle, key)
    body = envelope(bundle)
    forged = (bundle / PROVENANCE).read_bytes() + b" "
    (bundle / PROVENANCE).write_bytes(forged)
    body["payload"] = base64.b64encode(forged).decode()
    (bundle / ENVELOPES).write_text(json.dumps(body) + "\n")
    with pytest.raises(SignatureError, match="no signature of"):
        signing.verify(bundle, signing.public_of(key))


def test_another_type_of_payload_is_not_taken(bundle: Path, key: Path) -> None:
    private: Any = signing.load_private(key)
    theirs = Envelope((bundle / PROVENANCE).read_bytes(), "text/plain", {})
    theirs.sign(CryptoSigner(private, their_key(key)))
    (bundle / ENVELOPES).write_text(json.dumps(theirs.to_dict()) + "\n")
    with pytest.raises(SignatureError, match="no signature of"):
        signing.verify(bundle, signing.public_of(key))


def test_another_key_is_told_from_the_right_one(bundle: Path, key: Path, tmp_path: Path) -> None:
    signing.sign(bundle, key)
    other = tmp_path / "other.pem"
    signing.new_key(other)
    with pytest.raises(SignatureError) as caught:
        signing.verify(bundle, signing.public_of(other))
    assert signing.keyid(signing.load_public(signing.public_of(key)))[:16] in caught.value.why


def test_a_key_called_like_its_public_half_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="public half") as caught:
        signing.new_key(tmp_path / "release.pub")
    assert "release.pem" in caught.value.remedy
    assert not list(tmp_path.iterdir())


def test_a_public_half_is_written_through_no_link(tmp_path: Path) -> None:
    (tmp_path / "own.pub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="there already"):
        signing.new_key(tmp_path / "own.pem")
    assert not (tmp_path / "elsewhere").exists()


def test_a_key_id_proves_nothing(bundle: Path, key: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    signing.new_key(other)
    signing.sign(bundle, other)
    body = envelope(bundle)
    body["signatures"][0]["keyid"] = signing.keyid(signing.load_public(signing.public_of(key)))
    (bundle / ENVELOPES).write_text(json.dumps(body) + "\n")
    with pytest.raises(SignatureError, match="no signature of"):
        signing.verify(bundle, signing.public_of(key))


def test_a_touched_bundle_is_not_signed(bundle: Path, key: Path) -> None:
    (bundle / "llm.mnn").write_bytes(b"other")
    with pytest.raises(SignatureError, match=r"llm\.mnn was changed"):
        signing.sign(bundle, key)
    assert not (bundle / ENVELOPES).exists()


def test_without_a_signature_it_is_said(bundle: Path, key: Path) -> None:
    with pytest.raises(SignatureError, match="is not signed"):
        signing.verify(bundle, signing.public_of(key))


@pytest.mark.parametrize("text", ["", "{", '{"payload": "e30="}', "[]", '{"payload": "!"}'])
def test_a_damaged_envelope_is_refused(bundle: Path, key: Path, text: str) -> None:
    (bundle / ENVELOPES).write_text(text)
    with pytest.raises(SignatureError, match=r"no DSSE envelope|is not signed"):
        signing.verify(bundle, signing.public_of(key))


def test_a_folder_that_is_no_bundle_is_named(tmp_path: Path, key: Path) -> None:
    with pytest.raises(UsageError, match=r"has no provenance\.json"):
        signing.sign(tmp_path, key)


def test_a_new_key_is_this_users_alone_and_never_overwritten(key: Path) -> None:
    if sys.platform != "win32":
        assert key.stat().st_mode & 0o777 == 0o600
    before = key.read_bytes()
    with pytest.raises(UsageError, match="is there already"):
        signing.new_key(key)
    assert key.read_bytes() == before


def test_a_key_can_have_a_password(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "k.pem"
    monkeypatch.setenv("EDGEKILN_KEY_PASSWORD", "correct horse")
    signing.new_key(path)
    assert b"ENCRYPTED" in path.read_bytes()
    signing.sign(bundle, path)
    monkeypatch.setenv("EDGEKILN_KEY_PASSWORD", "wrong horse")
    with pytest.raises(UsageError, match="no key to sign with"):
        signing.sign(bundle, path)
    monkeypatch.delenv("EDGEKILN_KEY_PASSWORD")
    with pytest.raises(UsageError, match="cannot be opened"):
        signing.sign(bundle, path)
    signing.verify(bundle, signing.public_of(path))


def test_keys_of_other_kinds_are_refused(bundle: Path, tmp_path: Path) -> None:
    for name, made in (
        ("rsa", rsa.generate_private_key(65537, 2048)),
        ("p521", ec.generate_private_key(ec.SECP521R1())),
    ):
        path = written(made, tmp_path / f"{name}.pem")
        for use in (lambda p: signing.sign(bundle, p), signing.load_public):
            with pytest.raises(UsageError, match=r"not taken|no public key|no key to sign"):
                use(path)
        with pytest.raises(UsageError, match="not taken"):
            signing.load_public(signing.public_of(path))
    (tmp_path / "text.pem").write_text("hello")
    with pytest.raises(UsageError, match="no key to sign with"):
        signing.sign(bundle, tmp_path / "text.pem")
    with pytest.raises(UsageError, match="there is no key"):
        signing.sign(bundle, tmp_path / "none.pem")


@pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX systems")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_that_others_can_read_signs_nothing(bundle: Path, key: Path, mode: int) -> None:
    key.chmod(mode)
    with pytest.raises(UsageError, match="others can read") as caught:
        signing.sign(bundle, key)
    assert f"0{mode:o}" in caught.value.why and f"chmod 600 {key}" in caught.value.remedy
    assert not (bundle / ENVELOPES).exists()
    key.chmod(0o400)
    signing.sign(bundle, key)


def test_an_encrypted_key_may_lie_in_the_open(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKILN_KEY_PASSWORD", "behind the clock")
    path = tmp_path / "locked.pem"
    public = signing.new_key(path)
    path.chmod(0o644)
    signing.sign(bundle, path)
    assert signing.verify(bundle, public).files == len(
        json.loads((bundle / MANIFEST).read_text())["files"]
    )


def test_the_commands_make_a_key_sign_and_verify(bundle: Path) -> None:
    done = kiln("sign", str(bundle))
    assert done.returncode == 2 and "--new-key" in done.stderr
    for words in (
        ("sign", "--new-key"),
        ("sign", str(bundle)),
        ("verify", "signature", str(bundle)),
    ):
        done = kiln(*words)
        assert done.returncode == 0, done.stderr
    assert "its 3 files are what was signed" in done.stdout
    (bundle / "llm.mnn").write_bytes(b"other")
    done = kiln("verify", "signature", str(bundle))
    assert done.returncode == 19 and "llm.mnn was changed" in done.stderr


@pytest.mark.parametrize(
    "given",
    [
        {"folder": "", "key": "", "new_key": False, "sigstore": False},
        {"folder": "b", "key": "k", "new_key": False, "sigstore": True},
        {"folder": "b", "key": "", "new_key": True, "sigstore": True},
    ],
)
def test_commands_that_do_not_go_together_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        commands.sign(**given)
    with pytest.raises(UsageError, match="Sigstore needs"):
        commands.verify_signature("b", key="k", identity="me", issuer="who")
    with pytest.raises(UsageError, match="Sigstore needs"):
        commands.verify_signature("b", key="", identity="me", issuer="")


def test_sigstore_without_its_package_or_signature_is_told(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SignatureError, match="not signed by Sigstore"):
        keyless.verify(bundle, identity="me@example.org", issuer="https://example.org")
    monkeypatch.setitem(sys.modules, "sigstore", None)
    (bundle / SIGSTORE).write_text("{}")
    for act in (
        lambda: keyless.sign(bundle),
        lambda: keyless.verify(bundle, identity="me@example.org", issuer="https://example.org"),
    ):
        with pytest.raises(UsageError, match="not installed") as caught:
            act()
        assert isinstance(caught.value, KilnError) and "sigstore" in caught.value.remedy
    assert (bundle / SIGSTORE).read_text() == "{}"


def test_nothing_of_it_is_imported_by_a_build() -> None:
    code = "import sys, edgekiln.build, edgekiln.commands.bundles; "
    code += "print([m for m in sys.modules if m in "
    code += "('cryptography', 'edgekiln.signing', 'edgekiln.sbom', 'edgekiln.provenance')])"
    env = {**os.environ, "PYTHONPATH": str(Path(signing.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
