//! Revocation: the list that a CA signs (RFC 5280, 5), and how a node reads it.
//!
//! Never here: judging a certificate by it; the verifier of rustls does that. Invariant: a certificate that
//! a list names stays in every later list of that directory.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::issue::load_ca;
use super::{CA_CERT_FILE, TlsError, certificate_eid, certificates, read, unusable};
use crate::core::eid::Eid;

/// The list, beside the CA that signs it.
pub const CRL_FILE: &str = "crl.pem";

/// A certificate's serial number, as its bytes.
pub type Serial = Vec<u8>;

/// What [`revoke`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    pub file: PathBuf,
    /// Certificates that this call added, of those that were looked for.
    pub added: usize,
    pub total: usize,
}

/// Adds every certificate of these EIDs that lies in `dir`, and these serial numbers, to the list there.
pub fn revoke(dir: &Path, eids: &[Eid], serials: &[Serial], now_unix_s: u64) -> Result<Revoked, TlsError> {
    let mut wanted: BTreeSet<Serial> = serials.iter().cloned().collect();
    let lying = lying_in(dir)?;
    for eid in eids {
        let of_eid: Vec<Serial> = lying.iter().filter(|(of, _)| of == eid).map(|(_, serial)| serial.clone()).collect();
        if of_eid.is_empty() {
            return Err(TlsError::NoCertificateOf { eid: *eid, dir: dir.into() });
        }
        wanted.extend(of_eid);
    }
    let file = dir.join(CRL_FILE);
    let List { mut revoked, number } = if file.exists() { List::read(&file)? } else { List::default() };
    let before = revoked.len();
    for serial in wanted {
        revoked.entry(serial).or_insert(now_unix_s);
    }
    let total = revoked.len();
    write(dir, &file, &List { revoked, number: number + 1 }, now_unix_s)?;
    Ok(Revoked { file, added: total - before, total })
}

/// The EIDs and serial numbers of the nodes' certificates in `dir`, former ones included.
fn lying_in(dir: &Path) -> Result<Vec<(Eid, Serial)>, TlsError> {
    let fault = |source| TlsError::Read { path: dir.into(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(fault)? {
        let path = entry.map_err(fault)?.path();
        if path.extension().is_none_or(|extension| extension != "pem") {
            continue;
        }
        // The CA's own certificate and the list lie here too.
        let Some(certificate) = certificates(&path).ok().and_then(|chain| chain.into_iter().next()) else { continue };
        if let (Ok(eid), Some(serial)) = (certificate_eid(&certificate), serial_of(&certificate)) {
            found.push((eid, serial));
        }
    }
    Ok(found)
}

fn serial_of(certificate: &CertificateDer<'_>) -> Option<Serial> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(plain(parsed.raw_serial()))
}

/// Without the zeros that keep a number positive.
fn plain(serial: &[u8]) -> Serial {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    serial[zeros.min(serial.len().saturating_sub(1))..].to_vec()
}

/// What a list says.
#[derive(Default)]
struct List {
    /// Since when, in seconds since 1970.
    revoked: BTreeMap<Serial, u64>,
    number: u64,
}

impl List {
    fn read(file: &Path) -> Result<Self, TlsError> {
        let lists = load(file)?;
        let fault = || unusable(file, "it is not one revocation list of ours; move it away to begin a new one");
        let [list] = &lists[..] else { return Err(fault()) };
        let (_, parsed) = CertificateRevocationList::from_der(list).map_err(|_| fault())?;
        let since = |at: i64| u64::try_from(at).unwrap_or(0);
        let revoked = parsed
            .iter_revoked_certificates()
            .map(|entry| (plain(entry.raw_serial()), since(entry.revocation_date.timestamp())))
            .collect();
        let number = parsed.crl_number().and_then(|number| number.to_u64_digits().first().copied()).unwrap_or(0);
        Ok(Self { revoked, number })
    }
}

/// Put in place whole, so that a copy made meanwhile is the old list or the new one.
fn write(dir: &Path, file: &Path, list: &List, now_unix_s: u64) -> Result<(), TlsError> {
    let (issuer, ca_expires_unix_s) = load_ca(dir)?;
    if ca_expires_unix_s <= now_unix_s {
        return Err(TlsError::Expired(dir.join(CA_CERT_FILE)));
    }
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let at = |unix_s: u64| epoch + Duration::from_secs(unix_s);
    let entry = |(serial, since): (&Serial, &u64)| RevokedCertParams {
        serial_number: SerialNumber::from_slice(serial),
        revocation_time: at(*since),
        reason_code: None,
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: at(now_unix_s),
        // A list is good until there is a newer one: nodes do not ask for its age.
        next_update: at(ca_expires_unix_s),
        crl_number: SerialNumber::from(list.number),
        issuing_distribution_point: None,
        revoked_certs: list.revoked.iter().map(entry).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let made = |source| TlsError::Make { what: "the revocation list", source };
    let pem = params.signed_by(&issuer).and_then(|list| list.pem()).map_err(made)?;
    let fault = |source| TlsError::Write { path: file.into(), source };
    let mut new = tempfile::NamedTempFile::new_in(dir).map_err(fault)?;
    new.write_all(pem.as_bytes()).and_then(|()| new.as_file().sync_all()).map_err(fault)?;
    readable_by_all(new.as_file()).map_err(fault)?;
    new.persist(file).map_err(|error| fault(error.error))?;
    Ok(())
}

fn readable_by_all(file: &std::fs::File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

/// The lists in a file, one or several.
pub(super) fn load(file: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let fault = || TlsError::Pem { path: file.into(), what: "revocation list" };
    let pem = read(file)?;
    let lists: Vec<_> =
        CertificateRevocationListDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|_| fault())?;
    if lists.is_empty() { Err(fault()) } else { Ok(lists) }
}

/// How many certificates the lists name; a list of a CA that is not among `roots` would silently count for nothing.
pub(super) fn check(
    file: &Path,
    lists: &[CertificateRevocationListDer<'static>],
    roots: &[CertificateDer<'static>],
) -> Result<usize, TlsError> {
    let subjects: Vec<Vec<u8>> = roots
        .iter()
        .filter_map(|root| X509Certificate::from_der(root).ok().map(|(_, parsed)| parsed.subject().as_raw().to_vec()))
        .collect();
    let mut named = 0;
    for list in lists {
        let (_, parsed) =
            CertificateRevocationList::from_der(list).map_err(|_| unusable(file, "it is no revocation list"))?;
        if !subjects.iter().any(|subject| subject == parsed.issuer().as_raw()) {
            return Err(unusable(file, format!("{} is not among the CAs of [tls] ca", parsed.issuer())));
        }
        named += parsed.iter_revoked_certificates().count();
    }
    Ok(named)
}
