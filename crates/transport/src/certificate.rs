//! What stands in a certificate, read by `x509-parser`; whether it is to be trusted is rustls' business.

use crate::role::Holder;
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// A certificate that ends within so many days is warned of.
pub const ENDS_SOON: i64 = 14;
/// Seconds of a day.
const DAY: i64 = 24 * 3600;

/// A certificate, for people and decisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Its subject, as one line.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// Whether it is an authority.
    pub authority: bool,
    /// Roles and name of its holder.
    pub holder: Holder,
    /// Names and addresses that its holder is reached at.
    pub hosts: Vec<String>,
    /// Seconds since 1970 from which it is good.
    pub begins: i64,
    /// Seconds since 1970 until which it is good.
    pub ends: i64,
}

/// What cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// No PEM, or none with a certificate.
    #[error("no certificate in PEM (-----BEGIN CERTIFICATE-----) is in it{}", .0.as_ref().map_or_else(String::new, |e| format!(": {e}")))]
    Pem(Option<String>),
    /// PEM of something else.
    #[error("the certificate in it does not parse: {0}")]
    Der(String),
}

impl Certificate {
    /// Reads one.
    ///
    /// # Errors
    /// When it is none.
    pub fn read(der: &[u8]) -> Result<Self, CertificateError> {
        let bad = |e: &dyn std::fmt::Display| CertificateError::Der(e.to_string());
        let (_, found) = X509Certificate::from_der(der).map_err(|e| bad(&e))?;
        let (mut uris, mut hosts) = (Vec::new(), Vec::new());
        if let Some(names) = found.subject_alternative_name().map_err(|e| bad(&e))? {
            for name in &names.value.general_names {
                match name {
                    GeneralName::URI(uri) => uris.push(*uri),
                    GeneralName::DNSName(host) => hosts.push((*host).to_owned()),
                    GeneralName::IPAddress(bytes) => hosts.extend(address(bytes).map(|ip| ip.to_string())),
                    _ => {}
                }
            }
        }
        Ok(Self {
            subject: found.subject().to_string(),
            issuer: found.issuer().to_string(),
            authority: found.is_ca(),
            holder: Holder::from_uris(uris),
            hosts,
            begins: found.validity().not_before.timestamp(),
            ends: found.validity().not_after.timestamp(),
        })
    }

    /// Reads all of a PEM file.
    ///
    /// # Errors
    /// When there is none in it, or one does not parse.
    pub fn read_pem(pem: &[u8]) -> Result<Vec<Self>, CertificateError> {
        chain(pem)?.iter().map(|der| Self::read(der)).collect()
    }

    /// Seconds until it ends; negative once it has.
    pub fn left(&self, now: SystemTime) -> i64 {
        self.ends.saturating_sub(seconds(now))
    }

    /// Days until it ends, begun ones included: one that was issued for 365 has 365. Negative or 0 once it has ended.
    pub fn days_left(&self, now: SystemTime) -> i64 {
        let left = self.left(now);
        left.div_euclid(DAY) + i64::from(left.rem_euclid(DAY) > 0)
    }

    /// What is wrong with its time, if anything.
    pub fn warning(&self, now: SystemTime) -> Option<String> {
        let left = self.left(now);
        let days = self.days_left(now);
        if seconds(now) < self.begins {
            Some(format!("the certificate of {} is not good yet: look at this machine's clock", self.subject))
        } else if left < 0 {
            Some(format!("the certificate of {} has ended {} days ago: issue a new one", self.subject, -days))
        } else if days <= ENDS_SOON {
            Some(format!("the certificate of {} ends in {days} days: issue a new one", self.subject))
        } else {
            None
        }
    }
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// The certificates of a PEM file.
pub(crate) fn chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(all) if all.is_empty() => Err(CertificateError::Pem(None)),
        Ok(all) => Ok(all),
        Err(error) => Err(CertificateError::Pem(Some(error.to_string()))),
    }
}
