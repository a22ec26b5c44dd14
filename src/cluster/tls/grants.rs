//! The families that a certificate names, as URI SANs beside the EID: `kinfolk:family:` and the family,
//! percent-encoded, since a URI in a certificate is ASCII (RFC 5280, 4.2.1.6).
//!
//! Never here: what follows from them; see [`core::trust`](crate::core::trust).

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::CertificateEidError;
use crate::core::path::Family;
use crate::core::trust::Grants;

/// What the URI SAN of a granted family begins with.
pub const FAMILY_URI_PREFIX: &str = "kinfolk:family:";

/// What may not stand in a URI as it is.
const ENCODED: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'<').add(b'>').add(b'?').add(b'[').add(b']').add(b'\\');

pub(super) fn family_uri(family: &Family) -> String {
    format!("{FAMILY_URI_PREFIX}{}", utf8_percent_encode(family.as_str(), ENCODED))
}

/// What the certificate grants its owner: all families, unless it names some.
pub fn certificate_grants(certificate: &CertificateDer<'_>) -> Result<Grants, CertificateEidError> {
    let uris = uris(certificate)?;
    let named: Vec<&str> = uris.iter().filter_map(|uri| uri.strip_prefix(FAMILY_URI_PREFIX)).collect();
    if named.is_empty() {
        return Ok(Grants::All);
    }
    let family = |text: &&str| {
        let decoded = percent_decode_str(text).decode_utf8().ok()?;
        Family::new(&decoded).ok()
    };
    let families: Option<Vec<Family>> = named.iter().map(family).collect();
    families.map(Grants::only).ok_or(CertificateEidError::Family)
}

/// The URIs among the certificate's names.
pub(super) fn uris(certificate: &CertificateDer<'_>) -> Result<Vec<String>, CertificateEidError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| CertificateEidError::Malformed)?;
    let names = parsed.subject_alternative_name().map_err(|_| CertificateEidError::Malformed)?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let uri = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => Some((*uri).to_string()),
        _ => None,
    };
    Ok(names.iter().filter_map(uri).collect())
}
