//! Certificates: made with rcgen, read with x509-parser.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use pem::Pem;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use slicegate_core::time::Timestamp;
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// How far the clock of an API server may be behind ours: certificates are valid that much before they are made.
const SKEW: Duration = Duration::from_hours(1);
/// What a certificate is called in PEM.
const CERTIFICATE: &str = "CERTIFICATE";

/// What is wrong with a certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// It could not be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// It is no PEM.
    #[error("not PEM: {0}")]
    Pem(#[from] pem::PemError),
    /// It is PEM, but nothing in it is a certificate.
    #[error("no certificate in the PEM text")]
    Missing,
    /// It is PEM, but no certificate.
    #[error("not an X.509 certificate: {0}")]
    X509(String),
}

/// A certificate that can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The certificate itself, PEM.
    pub pem: String,
    /// The end of its validity.
    pub expires: Timestamp,
    /// The DNS names and IP addresses that it is for; none for an authority.
    pub hosts: BTreeSet<String>,
}

impl Certificate {
    /// Reads every certificate of a PEM text, in its order.
    pub fn read_all(text: &str) -> Result<Vec<Self>, CertificateError> {
        let blocks = pem::parse_many(text)?;
        blocks
            .iter()
            .filter(|block| block.tag() == CERTIFICATE)
            .map(|block| Self::parse(block.contents()))
            .collect()
    }

    /// Reads the first certificate of a PEM text.
    pub fn read(text: &str) -> Result<Self, CertificateError> {
        Self::read_all(text)?.into_iter().next().ok_or(CertificateError::Missing)
    }

    fn parse(der: &[u8]) -> Result<Self, CertificateError> {
        let broken = |error: &dyn std::fmt::Display| CertificateError::X509(error.to_string());
        let (_, parsed) = X509Certificate::from_der(der).map_err(|error| broken(&error))?;
        let names = parsed.subject_alternative_name().map_err(|error| broken(&error))?;
        let names = names.iter().flat_map(|extension| &extension.value.general_names);
        Ok(Self {
            pem: pem::encode(&Pem::new(CERTIFICATE, der)),
            expires: Timestamp(parsed.validity().not_after.timestamp().saturating_mul(1000)),
            hosts: names.filter_map(host).collect(),
        })
    }
}

fn host(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let address = match bytes.len() {
                4 => IpAddr::from(<[u8; 4]>::try_from(*bytes).ok()?),
                _ => IpAddr::from(<[u8; 16]>::try_from(*bytes).ok()?),
            };
            Some(address.to_string())
        }
        _ => None,
    }
}

/// A serving certificate, with its key and the authority that vouches for it.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The authority.
    pub authority: Certificate,
    /// The serving certificate.
    pub certificate: Certificate,
    /// The serving certificate's key, PEM.
    pub key: String,
}

/// Makes a serving certificate for these names and addresses, valid from `now` for a `lifetime`, and an authority for it alone:
/// the authority's key is thrown away, so nobody can ever sign anything else with it.
pub fn issue(
    hosts: &BTreeSet<String>,
    now: Timestamp,
    lifetime: Duration,
) -> Result<Issued, CertificateError> {
    let valid = |params: &mut CertificateParams| {
        params.not_before = instant(Timestamp(now.0 - i64::try_from(SKEW.as_millis()).unwrap_or(0)));
        params.not_after = instant(now + lifetime);
    };

    let authority_key = KeyPair::generate()?;
    let mut authority = CertificateParams::default();
    // Each authority has a name of its own: a bundle holds several, and clients look them up by name.
    authority.distinguished_name = named(&format!("slicegate gate webhook authority {}", now.0));
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    valid(&mut authority);
    let authority_pem = authority.self_signed(&authority_key)?.pem();
    let issuer = Issuer::new(authority, authority_key);

    let key = KeyPair::generate()?;
    let mut serving = CertificateParams::new(hosts.iter().cloned().collect::<Vec<_>>())?;
    serving.distinguished_name = named("slicegate gate webhook");
    serving.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    serving.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    serving.use_authority_key_identifier_extension = true;
    valid(&mut serving);
    let serving_pem = serving.signed_by(&key, &issuer)?.pem();

    Ok(Issued {
        authority: Certificate::read(&authority_pem)?,
        certificate: Certificate::read(&serving_pem)?,
        key: key.serialize_pem(),
    })
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// Whole seconds, which is all that a certificate can say.
fn instant(timestamp: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(timestamp.0.div_euclid(1000)).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_read_again_with_its_names_and_its_end() {
        let hosts = BTreeSet::from(["127.0.0.1".to_owned(), "a.b.svc".to_owned(), "::1".to_owned()]);
        let now = Timestamp(1_800_000_000_000);
        let issued = issue(&hosts, now, Duration::from_mins(1)).unwrap();
        assert_eq!(issued.certificate.hosts, hosts);
        assert_eq!(issued.certificate.expires, now + Duration::from_mins(1));
        assert_eq!(issued.authority.expires, issued.certificate.expires);
        let bundle = format!("{}{}", issued.authority.pem, issued.certificate.pem);
        assert_eq!(Certificate::read_all(&bundle).unwrap(), [issued.authority, issued.certificate]);
    }

    #[test]
    fn what_is_no_certificate_is_said_to_be_none() {
        assert!(Certificate::read("").unwrap_err().to_string().starts_with("no certificate"));
        let text = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(Certificate::read(text).unwrap_err().to_string().starts_with("not an X.509 certificate"));
    }
}
