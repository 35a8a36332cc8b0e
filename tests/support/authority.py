"""A certificate authority for one test. It issues valid and invalid certificates, and revocation
lists."""

import datetime
import ipaddress
import pathlib

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)


def now():
    return datetime.datetime.now(datetime.timezone.utc)


def name(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def alternative(text):
    kind, _, value = text.partition(":")
    match kind:
        case "IP":
            return x509.IPAddress(ipaddress.ip_address(value))
        case "URI":
            return x509.UniformResourceIdentifier(value)
        case "email":
            return x509.RFC822Name(value)
        case _:
            return x509.DNSName(text)


class Issued:
    """A certificate and its key, as files."""

    def __init__(self, folder, stem, certificate, key, chain=()):
        self.certificate, self.serial = certificate, certificate.serial_number
        self.cert, self.key = folder / f"{stem}.pem", folder / f"{stem}.key"
        self.cert.write_bytes(b"".join(each.public_bytes(serialization.Encoding.PEM) for each in (certificate, *chain)))
        plain = serialization.NoEncryption()
        self.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))


class Authority:
    """A CA. `ca` is the file of its certificate; `revoked` is the file of its revocation list."""

    def __init__(self, folder, common_name="Test CA"):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.name, self.private = name(common_name), ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(self.name, self.name, self.private.public_key(), now() - DAY, now() + 30 * DAY)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        self.certificate = builder.add_extension(usage, critical=True).sign(self.private, hashes.SHA256())
        self.ca, self.revoked = self.folder / "ca.pem", self.folder / "revoked.pem"
        self.ca.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        self.revoke()

    @staticmethod
    def _builder(subject, issuer, public, since, until):
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
        return builder.serial_number(x509.random_serial_number()).not_valid_before(since).not_valid_after(until)

    def issue(self, stem, *names, client=False, since=None, until=None, own=False):
        """Issues a certificate for these names. With `own` it is self-signed."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = name(stem)
        issuer, signer = (subject, key) if own else (self.name, self.private)
        builder = self._builder(subject, issuer, key.public_key(), since or now() - DAY, until or now() + 20 * DAY)
        builder = builder.add_extension(x509.SubjectAlternativeName([alternative(each) for each in names]), critical=False)
        usage = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        return Issued(self.folder, stem, builder.sign(signer, hashes.SHA256()), key)

    def revoke(self, *issued, next_update=30 * DAY):
        """Writes a revocation list that names these certificates."""
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.name).last_update(now() - 60 * DAY).next_update(now() + next_update)
        for each in issued:
            entry = x509.RevokedCertificateBuilder().serial_number(each.serial).revocation_date(now() - DAY).build()
            builder = builder.add_revoked_certificate(entry)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.private.public_key())
        builder = builder.add_extension(authority, critical=False).add_extension(x509.CRLNumber(1), critical=False)
        self.revoked.write_bytes(builder.sign(self.private, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
