//! Certificates as texts.

use mcl_transport::{HolderName, Role, name_uri};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, Error, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use std::collections::BTreeSet;
use std::net::IpAddr;
use time::{Duration, OffsetDateTime};

/// Clocks of a cluster differ a little: a certificate is good from a moment before it is made.
const BEFORE: Duration = Duration::minutes(5);
/// What a service may always be called by those on its own machine.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Somebody who signs.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    key_pem: String,
}

/// What a certificate is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What its holder may be.
    pub roles: BTreeSet<Role>,
    /// The name that its holder is tied to, if to any.
    pub name: Option<HolderName>,
    /// Names and addresses that a service is reached at.
    pub hosts: Vec<String>,
    /// From when on it is good, and for how many days.
    pub begins: OffsetDateTime,
    /// See `begins`.
    pub days: u32,
}

impl Wanted {
    /// For one role, from now on.
    pub fn new(role: Role, days: u32) -> Self {
        let roles = BTreeSet::from([role]);
        Self { roles, name: None, hosts: Vec::new(), begins: OffsetDateTime::now_utc(), days }
    }
}

/// A certificate and its key, as PEM.
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl Authority {
    /// A new one that signs itself.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new(name: &str, days: u32) -> Result<Self, Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = called(name);
        // It signs certificates of holders, and no other authority.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = span(OffsetDateTime::now_utc(), days);
        let pem = params.self_signed(&key)?.pem();
        let key_pem = key.serialize_pem();
        Ok(Self { issuer: Issuer::new(params, key), pem, key_pem })
    }

    /// One that was made before.
    ///
    /// # Errors
    /// When it does not parse.
    pub fn from_pem(pem: &str, key_pem: &str) -> Result<Self, Error> {
        let key = KeyPair::from_pem(key_pem)?;
        let issuer = Issuer::from_ca_cert_pem(pem, key)?;
        Ok(Self { issuer, pem: pem.to_owned(), key_pem: key_pem.to_owned() })
    }

    /// Its own certificate.
    pub fn certificate(&self) -> &str {
        &self.pem
    }

    pub(crate) fn key(&self) -> &str {
        &self.key_pem
    }

    /// Signs a certificate with a key of its own.
    ///
    /// # Errors
    /// When a host is neither a name nor an address.
    pub fn issue(&self, wanted: &Wanted) -> Result<Issued, Error> {
        let mut params = CertificateParams::default();
        let roles: Vec<&str> = wanted.roles.iter().map(|role| role.as_str()).collect();
        let own = wanted.name.as_ref().map_or_else(|| roles.join("+"), ToString::to_string);
        params.distinguished_name = called(&own);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let service = wanted.roles.contains(&Role::Service);
        let loopback = LOOPBACK.iter().filter(|_| service).map(|host| (*host).to_owned());
        if service {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        for host in loopback.chain(wanted.hosts.iter().cloned()) {
            let name = match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(host.try_into()?),
            };
            if !params.subject_alt_names.contains(&name) {
                params.subject_alt_names.push(name);
            }
        }
        let uris = wanted.roles.iter().map(|role| role.uri()).chain(wanted.name.as_ref().map(name_uri));
        for uri in uris {
            params.subject_alt_names.push(SanType::URI(uri.try_into()?));
        }
        (params.not_before, params.not_after) = span(wanted.begins, wanted.days);
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Issued { certificate, key: key.serialize_pem() })
    }
}

fn called(name: &str) -> DistinguishedName {
    let mut called = DistinguishedName::new();
    called.push(DnType::CommonName, name);
    called
}

fn span(begins: OffsetDateTime, days: u32) -> (OffsetDateTime, OffsetDateTime) {
    (begins - BEFORE, begins.saturating_add(Duration::days(i64::from(days))))
}
