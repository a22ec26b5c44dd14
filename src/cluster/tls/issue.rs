//! Making the cluster's CA and the certificates of its nodes.
//!
//! Never here: overwriting a file, or a key file that anyone but its owner can read, not even for a moment.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use xxhash_rust::xxh3::xxh3_64;

use super::grants::family_uri;
use super::{EID_URI_PREFIX, NODE_DNS_NAME, TlsError, certificates, read, refuse_open_key};
use crate::core::eid::Eid;
use crate::core::path::Family;

/// The CA's certificate, which every node needs.
pub const CA_CERT_FILE: &str = "ca.pem";
/// The CA's key, which no node needs.
pub const CA_KEY_FILE: &str = "ca.key";
/// How long a new CA is valid, in days.
pub const CA_VALID_DAYS: u32 = 3_652;
/// How long a node's certificate is valid unless said otherwise, in days.
pub const NODE_VALID_DAYS: u32 = 730;
/// The longest validity that can be asked for, in days.
const VALID_DAYS_MAX: u32 = 36_525;

const DAY_S: u64 = 86_400;
/// Certificates begin to be valid this long before they are made: the clocks of servers differ.
const BACKDATED_S: u64 = DAY_S;
const CERT_MODE: u32 = 0o644;
const KEY_MODE: u32 = 0o600;

/// What [`issue`] made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    pub eid: Eid,
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// What [`issue_wanted`] is to make.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// None: a random, locally administered one.
    pub eid: Option<Eid>,
    /// The families that others trust the node for; none: all of them.
    pub families: Vec<Family>,
    pub valid_days: u32,
    /// Whether files of an earlier certificate of the EID are put aside for it; else they are in the way.
    pub renew: bool,
}

/// Makes the cluster's CA in `dir`. Each CA bears a name of its own, since a revocation list says by name
/// whose certificates it lists (RFC 5280, 5.1.2.3), and a node may trust an old and a new CA at once.
pub fn init_ca(dir: &Path, cluster_name: &str, now_unix_s: u64) -> Result<(), TlsError> {
    std::fs::create_dir_all(dir).map_err(|source| TlsError::Write { path: dir.into(), source })?;
    let key = new_key()?;
    let name = format!("Kinfolk CA of {cluster_name}, {:08x}", xxh3_64(key.public_key_raw()) >> 32);
    let mut params = params(&name, now_unix_s, days_after(now_unix_s, CA_VALID_DAYS));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate =
        params.self_signed(&key).map_err(|source| TlsError::Make { what: "the CA's certificate", source })?;
    write_pair(&dir.join(CA_CERT_FILE), &certificate, &dir.join(CA_KEY_FILE), &key)
}

/// Makes a node's certificate and key in `dir`, where the CA is. Without an EID a random, locally
/// administered one is drawn. It never outlives the CA.
pub fn issue(dir: &Path, eid: Option<Eid>, valid_days: u32, now_unix_s: u64) -> Result<Issued, TlsError> {
    issue_wanted(dir, &Wanted { eid, valid_days, ..Wanted::default() }, now_unix_s)
}

/// The same with all that can be said of a certificate.
pub fn issue_wanted(dir: &Path, wanted: &Wanted, now_unix_s: u64) -> Result<Issued, TlsError> {
    let eid = wanted.eid.unwrap_or_else(random_eid);
    if eid.is_empty() {
        return Err(TlsError::EmptyEid);
    }
    let (issuer, ca_expires_unix_s) = load_ca(dir)?;
    if ca_expires_unix_s <= now_unix_s {
        return Err(TlsError::Expired(dir.join(CA_CERT_FILE)));
    }
    let expires_unix_s = days_after(now_unix_s, wanted.valid_days).min(ca_expires_unix_s);
    let mut params = params(&format!("Kinfolk node {eid}"), now_unix_s, expires_unix_s);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let made = |source| TlsError::Make { what: "the node's certificate", source };
    params.subject_alt_names = vec![
        SanType::URI(format!("{EID_URI_PREFIX}{eid}").try_into().map_err(made)?),
        SanType::DnsName(NODE_DNS_NAME.try_into().map_err(made)?),
    ];
    for family in &wanted.families {
        params.subject_alt_names.push(SanType::URI(family_uri(family).try_into().map_err(made)?));
    }
    let node_key = new_key()?;
    let certificate = params.signed_by(&node_key, &issuer).map_err(made)?;
    let file = |extension| dir.join(eid.compact()).with_extension(extension);
    let issued = Issued { eid, cert: file("pem"), key: file("key") };
    if wanted.renew {
        put_aside(&issued)?;
    }
    write_pair(&issued.cert, &certificate, &issued.key, &node_key)?;
    Ok(issued)
}

/// The former certificate stays beside the new one, so that it can be revoked.
fn put_aside(issued: &Issued) -> Result<(), TlsError> {
    let aside = |path: &Path, n: u32| {
        let extension = path.extension().unwrap_or_default().to_string_lossy().into_owned();
        path.with_extension(format!("{n}.{extension}"))
    };
    let free = |n: &u32| [&issued.cert, &issued.key].iter().all(|path| !aside(path, *n).exists());
    let n = (1..).find(free).expect("a directory holds fewer files than there are numbers");
    for path in [&issued.cert, &issued.key] {
        match std::fs::rename(path, aside(path, n)) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(TlsError::Write { path: path.clone(), source });
            }
            _ => {}
        }
    }
    Ok(())
}

/// A random EID with the bit of local administration set and the multicast bit clear, as for a MAC address.
fn random_eid() -> Eid {
    #[expect(clippy::disallowed_methods, reason = "a new identity, drawn once and written down")]
    let mut bytes: [u8; Eid::BYTES] = rand::random();
    bytes[0] = (bytes[0] | 0b10) & !0b01;
    Eid::new(bytes)
}

fn new_key() -> Result<KeyPair, TlsError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|source| TlsError::Make { what: "a key", source })
}

fn params(common_name: &str, now_unix_s: u64, expires_unix_s: u64) -> CertificateParams {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let since_epoch = |unix_s: u64| Duration::from_secs(unix_s.min(TIME_MAX_UNIX_S));
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = epoch + since_epoch(now_unix_s.saturating_sub(BACKDATED_S));
    params.not_after = epoch + since_epoch(expires_unix_s);
    params
}

fn days_after(now_unix_s: u64, days: u32) -> u64 {
    now_unix_s.saturating_add(u64::from(days.min(VALID_DAYS_MAX)) * DAY_S)
}

/// The last second that a certificate can name: the end of the year 9999.
const TIME_MAX_UNIX_S: u64 = 253_402_300_799;

pub(super) fn load_ca(dir: &Path) -> Result<(Issuer<'static, KeyPair>, u64), TlsError> {
    let (cert_path, key_path) = (dir.join(CA_CERT_FILE), dir.join(CA_KEY_FILE));
    let certificate = certificates(&cert_path)?.swap_remove(0);
    refuse_open_key(&key_path)?;
    let no_key = || TlsError::Pem { path: key_path.clone(), what: "private key" };
    let pem = String::from_utf8(read(&key_path)?).map_err(|_| no_key())?;
    let key = KeyPair::from_pem(&pem).map_err(|_| no_key())?;
    let unusable = |reason: String| TlsError::Unusable { path: cert_path.clone(), reason };
    let (_, parsed) = X509Certificate::from_der(&certificate).map_err(|error| unusable(error.to_string()))?;
    if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
        return Err(TlsError::ForeignKey { key: key_path, cert: cert_path });
    }
    let expires_unix_s = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
    let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|error| unusable(error.to_string()))?;
    Ok((issuer, expires_unix_s))
}

/// The key goes first: a certificate without its key would be of no use to anyone.
fn write_pair(cert: &Path, certificate: &Certificate, key: &Path, pair: &KeyPair) -> Result<(), TlsError> {
    for path in [cert, key] {
        if path.exists() {
            return Err(TlsError::Exists(path.into()));
        }
    }
    write_new(key, pair.serialize_pem().as_bytes(), KEY_MODE)?;
    write_new(cert, certificate.pem().as_bytes(), CERT_MODE)
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), TlsError> {
    use std::os::unix::fs::OpenOptionsExt;
    let fault = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::AlreadyExists => TlsError::Exists(path.into()),
        _ => TlsError::Write { path: path.into(), source },
    };
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(fault)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(fault)
}
