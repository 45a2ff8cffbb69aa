"""Keys of a federation: a private authority for the SuperLink's TLS, and a key pair for each site.

For a trial, or wherever no authority of the organisation's own is at hand; certificates of another authority serve as
well, under the same file names.
"""

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from curtail_pipeline.errors import FederationError

AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 825
"""The longest that current TLS clients accept of a server's certificate."""
LOOPBACK = ("localhost", "127.0.0.1")
"""In every certificate: the SuperLink's own processes reach it there."""
_CLOCKS = timedelta(minutes=5)
"""How far the clock of a site may be behind on the day the keys are made."""


@dataclass(frozen=True)
class KeyFolder:
    """The folder that `make_keys` writes; `ca.key` is needed only to issue again and is best kept elsewhere."""

    folder: Path

    @property
    def authority(self) -> Path:
        return self.folder / "ca.crt"

    @property
    def authority_key(self) -> Path:
        return self.folder / "ca.key"

    @property
    def certificate(self) -> Path:
        return self.folder / "superlink.crt"

    @property
    def certificate_key(self) -> Path:
        return self.folder / "superlink.key"

    def require(self) -> None:
        """
        Raises:
            FederationError: a file that the SuperLink needs is not there.
        """
        for path in (self.authority, self.certificate, self.certificate_key):
            if not path.is_file():
                raise FederationError(
                    f"{path} does not exist; make it with `curtail deploy keys {self.folder} --host NAME`"
                )


def make_keys(folder: Path, hosts: Sequence[str]) -> KeyFolder:
    """A certificate of the SuperLink for these names and addresses, and the authority that signs it.

    An authority that is there is used again, so that sites go on trusting the SuperLink.

    Raises:
        FederationError: the folder has one half of an authority, or a host is no name.
    """
    found = KeyFolder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if found.authority.exists() != found.authority_key.exists():
        raise FederationError(
            f"{folder} has only one of ca.crt and ca.key; bring the other one, or name an empty folder"
        )
    if not found.authority.exists():
        _make_authority(found)
    authority = x509.load_pem_x509_certificate(found.authority.read_bytes())
    signer = serialization.load_pem_private_key(found.authority_key.read_bytes(), None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise FederationError(f"{found.authority_key} is no elliptic-curve key; name an empty folder")
    key = ec.generate_private_key(ec.SECP256R1())
    names = [_name_of(host) for host in dict.fromkeys((*hosts, *LOOPBACK))]
    certificate = (
        _builder("curtail SuperLink", authority.subject, key, CERTIFICATE_DAYS)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    _write_private(found.certificate_key, _pem(key))
    found.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return found


def lacking_hosts(certificate: Path, hosts: Sequence[str]) -> list[str]:
    """Which of these names and addresses a certificate does not vouch for; all where there is none.

    Raises:
        FederationError: a host is no name, or the file is no certificate.
    """
    wanted = {host: _name_of(host) for host in hosts}
    if not certificate.exists():
        return [*wanted]
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        known = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound) as error:
        raise FederationError(f"{certificate} is no certificate of a server ({error}); remove it") from None
    return [host for host, name in wanted.items() if name not in known]


def public_key_of(private: Path) -> bytes:
    """The public half of a site's key, PEM: of `PRIVATE.pub` where that is there, else of a pair made now.

    The pair is P-384, which is what Flower signs with; files are in OpenSSH's format, as `ssh-keygen` writes them.

    Raises:
        FederationError: a file that cannot be read as such a key.
    """
    public = private.with_name(f"{private.name}.pub")
    if not public.exists():
        if private.exists():
            raise FederationError(f"{private} is there without {public.name}; bring that, or name a new file")
        private.parent.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP384R1())
        _write_private(private, _pem(key, serialization.PrivateFormat.OpenSSH))
        ssh = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        public.write_bytes(key.public_key().public_bytes(*ssh) + b"\n")
    try:
        found = serialization.load_ssh_public_key(public.read_bytes())
    except ValueError as error:
        raise FederationError(f"{public} is no public key in OpenSSH's format: {error}") from None
    if not isinstance(found, ec.EllipticCurvePublicKey):
        raise FederationError(f"{public} is no elliptic-curve key; make one with `ssh-keygen -t ecdsa -b 384`")
    return found.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _make_authority(found: KeyFolder) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "curtail private authority")])
    usage = x509.KeyUsage(
        key_cert_sign=True, crl_sign=True, digital_signature=False, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        _builder("curtail private authority", subject, key, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write_private(found.authority_key, _pem(key))
    found.authority.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _builder(name: str, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS)
        .not_valid_after(now + timedelta(days=days))
    )


def _name_of(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not host or any(sign in host for sign in ":/ @"):
        raise FederationError(f"host {host!r} is no name or address; give it without scheme and port")
    return x509.DNSName(host)


def _pem(
    key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8
) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _write_private(path: Path, content: bytes) -> None:
    """Nobody else may read it, not even for a moment."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(content)
