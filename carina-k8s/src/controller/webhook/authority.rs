//! Certificates of our own making: an authority that signs one certificate and is forgotten.

use carina_core::{Error, Result};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// How long a certificate is good.
const VALID: SignedDuration = SignedDuration::from_hours(365 * 24);
/// How long before its end another is made.
const RENEW: SignedDuration = SignedDuration::from_hours(120 * 24);
/// How far before now it begins: clocks differ.
const BEFORE: SignedDuration = SignedDuration::from_hours(24);

/// A certificate with what others check it by. All are PEM.
pub struct Made {
    /// The authority's certificate. Its key is nowhere: nothing else is ever signed by it.
    pub authority: String,
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
    /// Until when it is good.
    pub not_after: Timestamp,
}

/// Makes a certificate for a server of these names.
///
/// # Errors
/// If there is no randomness, or a name can't be one.
pub fn make(names: &[String], now: Timestamp) -> Result<Made> {
    let failed = |error: rcgen::Error| Error::Precondition(format!("no certificate was made: {error}"));
    let (from, not_after) = (day(now - BEFORE), day(now + VALID));
    let date = |day: Date| {
        let part = |n: i8| u8::try_from(n).unwrap_or(1);
        rcgen::date_time_ymd(i32::from(day.year()), part(day.month()), part(day.day()))
    };
    let params = |names: &[String], common: &str| {
        let mut params = CertificateParams::new(names.to_vec())?;
        params.distinguished_name.push(DnType::CommonName, common);
        (params.not_before, params.not_after) = (date(from), date(not_after));
        Ok(params)
    };
    let mut authority = params(&[], &format!("carina webhook authority until {not_after}")).map_err(failed)?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let authority_key = KeyPair::generate().map_err(failed)?;
    let signed_by_itself = authority.self_signed(&authority_key).map_err(failed)?;
    let issuer = Issuer::new(authority, authority_key);
    let mut leaf = params(names, "carina-controller").map_err(failed)?;
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = leaf.signed_by(&key, &issuer).map_err(failed)?;
    let not_after = not_after.to_zoned(TimeZone::UTC).map_err(|e| Error::Precondition(e.to_string()))?.timestamp();
    Ok(Made { authority: signed_by_itself.pem(), certificate: certificate.pem(), key: key.serialize_pem(), not_after })
}

/// When another certificate has to be made for one that is good until then.
pub fn renewal(not_after: Timestamp) -> Timestamp {
    not_after - RENEW
}

fn day(at: Timestamp) -> Date {
    at.to_zoned(TimeZone::UTC).date()
}
