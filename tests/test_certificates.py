"""Certificates: what they say, for whom they hold, and what is refused. No sockets."""

import time
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cluster import certificates
from cluster.certificates import (
    CA_DAYS,
    MACHINE_DAYS,
    RENEW_DAYS,
    BadRequest,
    is_due,
    issue,
    new_authority,
    new_key,
    new_request,
)

NOW = 1_800_000_000.0
ME, ADDRESS = "a" * 32, "192.168.1.10"


def read(text: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(text.encode())


def test_a_machines_certificate_is_for_its_address_and_no_other() -> None:
    signer, key = new_authority(NOW), new_key()
    made = read(issue(signer, new_request(key, ME), ME, ADDRESS, NOW))
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == [ADDRESS, "127.0.0.1"]
    assert names.get_values_for_type(x509.DNSName) == []
    made.verify_directly_issued_by(read(signer.certificate))
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert (
        made.not_valid_after_utc - made.not_valid_before_utc
        == timedelta(days=MACHINE_DAYS) + certificates.EARLIER
    )
    assert (made.not_valid_before_utc.timestamp(), made.not_valid_after_utc.timestamp()) == (
        NOW - certificates.EARLIER.total_seconds(),
        NOW + MACHINE_DAYS * 86400,
    )


def test_a_certificate_is_to_be_renewed_in_the_last_fifth_of_its_life() -> None:
    signer, day = new_authority(NOW), 86400.0
    made = issue(signer, new_request(new_key(), ME), ME, ADDRESS, NOW)
    assert not is_due(made, NOW)
    assert not is_due(made, NOW + (MACHINE_DAYS - RENEW_DAYS - 1) * day)
    assert is_due(made, NOW + (MACHINE_DAYS - RENEW_DAYS) * day)
    assert is_due(made, NOW + (MACHINE_DAYS + 1) * day)
    assert is_due(made, NOW - 3 * day), "it is not valid yet"
    assert is_due("", NOW)
    assert is_due("nonsense", NOW)


def test_a_certificate_does_not_outlive_its_ca() -> None:
    signer = new_authority(NOW)
    late = NOW + (CA_DAYS - 400) * 86400.0
    made = read(issue(signer, new_request(new_key(), ME), ME, ADDRESS, late))
    assert made.not_valid_after_utc == read(signer.certificate).not_valid_after_utc


def test_a_head_whose_clock_is_behind_makes_none_that_has_expired_once_it_is_set() -> None:
    signer = new_authority(NOW)
    made = read(issue(signer, new_request(new_key(), ME), ME, ADDRESS, 0.0))  # 1970, until it has asked
    assert made.not_valid_after_utc.timestamp() == NOW + MACHINE_DAYS * 86400


def test_a_request_gets_what_the_head_says_and_not_what_it_asks_for() -> None:
    """A machine that was taken over asks for another's name and address, and to be a CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    asked = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "b" * 32)]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("head")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    text = asked.public_bytes(Encoding.PEM).decode()
    made = read(issue(new_authority(NOW), text, ME, ADDRESS, NOW))
    assert made.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == ME
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == []


def test_two_cas_differ_in_name_and_key() -> None:
    one, two = new_authority(NOW), new_authority(NOW)
    assert read(one.certificate).subject != read(two.certificate).subject
    constraints = read(one.certificate).extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, 0)


def forged() -> str:
    """A request whose signature another key made."""
    whole = x509.load_pem_x509_csr(new_request(new_key(), ME).encode())
    other = x509.load_pem_x509_csr(new_request(new_key(), ME).encode())
    der = whole.public_bytes(Encoding.DER)
    broken = der.replace(whole.signature[-8:], other.signature[-8:])
    return x509.load_der_x509_csr(broken).public_bytes(Encoding.PEM).decode()


def of_another_curve() -> str:
    key = ec.generate_private_key(ec.SECP384R1())
    made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA384())
    return made.public_bytes(Encoding.PEM).decode()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no request"),
        ("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "no request"),
        (new_authority(time.time()).certificate, "no request"),
        (forged(), "signature does not hold"),
        (of_another_curve(), "none of P-256"),
    ],
)
def test_what_is_no_request_is_refused(text: str, why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        issue(new_authority(NOW), text, ME, ADDRESS, NOW)
