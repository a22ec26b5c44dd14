//! Identities: which certificate a node shows, and how it checks those of others.
//!
//! An identity is a certificate of the cluster's CA whose URI SAN carries the node's EID. All checking is
//! done by the standard verifiers of rustls: every node's certificate also carries the one fixed DNS name
//! [`NODE_DNS_NAME`], which a dialler asks for whatever address it dials.
//!
//! Never here: a certificate verifier of our own, a process-wide crypto provider, the wall clock (but the one
//! that rustls itself reads when it verifies a peer).
//! Invariant: an [`Identity`] that loaded is one that peers with the same CA accept, until it expires.

mod grants;
mod issue;
mod revoke;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, RootCertStore};
use x509_parser::prelude::{FromDer, X509Certificate};

pub use grants::{FAMILY_URI_PREFIX, certificate_grants};
pub use issue::{
    CA_CERT_FILE, CA_KEY_FILE, CA_VALID_DAYS, Issued, NODE_VALID_DAYS, Wanted, init_ca, issue, issue_wanted,
};
pub use revoke::{CRL_FILE, Revoked, Serial, revoke};

use crate::core::eid::{Eid, EidError};
use crate::core::trust::Grants;

/// The DNS name that every node's certificate carries.
pub const NODE_DNS_NAME: &str = "node.kinfolk.internal";
/// What the URI SAN of a node's certificate begins with; the EID follows.
pub const EID_URI_PREFIX: &str = "kinfolk:eid:";
/// The application protocol that both sides of a connection must name.
pub const ALPN: &[u8] = b"kinfolk/1";

/// Why an identity cannot be made or loaded.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {path}: {source}; check [tls] in the configuration and the file's owner")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{0} exists already and is not overwritten; move it away first if it is really not needed")]
    Exists(PathBuf),
    #[error("{path} holds no {what} in PEM form; make one with 'kinfolk tls'")]
    Pem { path: PathBuf, what: &'static str },
    #[error("{path} can be used by others than its owner (mode {mode:04o}); run 'chmod 600 {path}'")]
    KeyMode { path: PathBuf, mode: u32 },
    #[error("the certificate {0} has expired; make a new one with 'kinfolk tls issue --eid <the same EID>'")]
    Expired(PathBuf),
    #[error("the certificate {0} is not valid yet; check this machine's clock")]
    NotYetValid(PathBuf),
    #[error("the certificate {cert} was not issued by the CA in {ca}; use the files that were issued together")]
    ForeignCa { cert: PathBuf, ca: PathBuf },
    #[error("the key {key} does not belong to the certificate {cert}; use the files that were issued together")]
    ForeignKey { key: PathBuf, cert: PathBuf },
    #[error("the certificate {path} names no node: {source}; make one with 'kinfolk tls issue'")]
    Eid { path: PathBuf, source: CertificateEidError },
    #[error("{path} cannot be used: {reason}; make a new one with 'kinfolk tls'")]
    Unusable { path: PathBuf, reason: String },
    #[error("the certificate {0} is revoked; make a new one with 'kinfolk tls issue --renew'")]
    Revoked(PathBuf),
    #[error(
        "no certificate of {eid} lies in {dir}; name it by its serial number, or refuse the EID with [tls] revoked"
    )]
    NoCertificateOf { eid: Eid, dir: PathBuf },
    #[error("the EID 00:00:00:00:00:00 stands for 'none'; choose another, or let one be drawn")]
    EmptyEid,
    #[error("cannot make {what}: {source}")]
    Make { what: &'static str, source: rcgen::Error },
}

/// Why a certificate does not say which node it is of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateEidError {
    #[error("there is no certificate")]
    NoCertificate,
    #[error("it is not an X.509 certificate")]
    Malformed,
    #[error("it has {0} names of the form {EID_URI_PREFIX}02:00:…, exactly one is wanted")]
    NotOne(usize),
    #[error(transparent)]
    Eid(#[from] EidError),
    #[error("it carries the EID that stands for 'none'")]
    Empty,
    #[error("one of its names of the form {FAMILY_URI_PREFIX}… is no family")]
    Family,
}

/// The EID that a certificate is issued to.
pub fn certificate_eid(certificate: &CertificateDer<'_>) -> Result<Eid, CertificateEidError> {
    let uris = grants::uris(certificate)?;
    let eids: Vec<&str> = uris.iter().filter_map(|uri| uri.strip_prefix(EID_URI_PREFIX)).collect();
    let [text] = eids[..] else { return Err(CertificateEidError::NotOne(eids.len())) };
    let eid: Eid = text.parse()?;
    if eid.is_empty() { Err(CertificateEidError::Empty) } else { Ok(eid) }
}

/// The verified certificates of the peer on the other side, its own first.
pub fn peer_chain(connection: &quinn::Connection) -> Result<Vec<CertificateDer<'static>>, CertificateEidError> {
    let identity = connection.peer_identity().ok_or(CertificateEidError::NoCertificate)?;
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>().map_err(|_| CertificateEidError::NoCertificate)?;
    if chain.is_empty() { Err(CertificateEidError::NoCertificate) } else { Ok(*chain) }
}

/// The EID in the verified certificate of the peer on the other side.
pub fn peer_eid(connection: &quinn::Connection) -> Result<Eid, CertificateEidError> {
    certificate_eid(&peer_chain(connection)?[0])
}

/// Where an identity is read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityFiles {
    /// May hold several certificates: while the CA is changed, those of the old and the new one.
    pub ca: PathBuf,
    /// May hold intermediates behind the node's own certificate.
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Lists of revoked certificates, one for each CA that has one.
    pub crl: Option<PathBuf>,
}

/// Why a certificate that was good once is good no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    #[error("its certificate is revoked")]
    Revoked,
    #[error("its certificate has expired")]
    Expired,
    #[error("its certificate is not of a CA that is trusted here")]
    Ca,
}

/// A node's certificate, key, CAs and revocation lists, checked against each other.
#[derive(Clone)]
pub struct Identity {
    eid: Eid,
    expires_unix_s: i64,
    grants: Grants,
    revoked: usize,
    server: Arc<QuicServerConfig>,
    client: Arc<QuicClientConfig>,
    /// Checks what a handshake checks, and the lists of revoked certificates.
    checker: Arc<dyn ClientCertVerifier>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({}, expires {})", self.eid, self.expires_unix_s)
    }
}

impl Identity {
    /// Reads the files and checks all that can be checked before a peer does.
    pub fn load_files(paths: &IdentityFiles, now_unix_s: u64) -> Result<Self, TlsError> {
        let files = Files { ca: &paths.ca, cert: &paths.cert, key: &paths.key, crl: paths.crl.as_deref() };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let authorities = certificates(files.ca)?;
        let roots = files.roots(&authorities)?;
        let lists = files.crl.map(revoke::load).transpose()?.unwrap_or_default();
        let revoked = files.crl.map_or(Ok(0), |file| revoke::check(file, &lists, &authorities))?;
        let chain = files.chain()?;
        let certified = files.certified_key(chain.clone(), &provider)?;
        let checker = files.checker(&roots, lists, &provider)?;
        let verifiers = files.verify(&roots, &chain, &provider, &checker, now_unix_s)?;
        let named = |source| TlsError::Eid { path: paths.cert.clone(), source };
        let (eid, grants) = (certificate_eid(&chain[0]).map_err(named)?, certificate_grants(&chain[0]).map_err(named)?);
        let expires_unix_s = files.expires_unix_s(&chain[0])?;
        let (server, client) = files.configs(verifiers, certified, provider)?;
        Ok(Self { eid, expires_unix_s, grants, revoked, server, client, checker })
    }

    /// The same without a list of revoked certificates.
    pub fn load(ca: &Path, cert: &Path, key: &Path, now_unix_s: u64) -> Result<Self, TlsError> {
        Self::load_files(&IdentityFiles { ca: ca.into(), cert: cert.into(), key: key.into(), crl: None }, now_unix_s)
    }

    /// Whether a peer's certificates are good as of now: those of a new connection, which the handshake found
    /// good but for the lists, and those of one that stands when something has changed.
    pub fn check(&self, chain: &[CertificateDer<'static>]) -> Result<(), Distrust> {
        use CertificateError as Fault;
        let (own, intermediates) = chain.split_first().ok_or(Distrust::Ca)?;
        match self.checker.verify_client_cert(own, intermediates, UnixTime::now()) {
            Ok(_) => Ok(()),
            Err(rustls::Error::InvalidCertificate(Fault::Revoked)) => Err(Distrust::Revoked),
            Err(rustls::Error::InvalidCertificate(Fault::Expired | Fault::ExpiredContext { .. })) => {
                Err(Distrust::Expired)
            }
            Err(_) => Err(Distrust::Ca),
        }
    }

    /// The families that this node's certificate names.
    pub fn grants(&self) -> &Grants {
        &self.grants
    }

    /// How many certificates are on the lists of revoked ones.
    pub fn revoked(&self) -> usize {
        self.revoked
    }

    /// The EID of this node.
    pub fn eid(&self) -> Eid {
        self.eid
    }

    /// When the certificate expires, in seconds since 1970.
    pub fn expires_unix_s(&self) -> i64 {
        self.expires_unix_s
    }

    /// For the side that is dialled. The caller sets the transport's limits.
    pub fn server_config(&self) -> quinn::ServerConfig {
        quinn::ServerConfig::with_crypto(self.server.clone())
    }

    /// For the side that dials; it must ask for [`NODE_DNS_NAME`].
    pub fn client_config(&self) -> quinn::ClientConfig {
        quinn::ClientConfig::new(self.client.clone())
    }
}

struct Verifiers {
    server: Arc<WebPkiServerVerifier>,
    client: Arc<dyn ClientCertVerifier>,
}

type Configs = (Arc<QuicServerConfig>, Arc<QuicClientConfig>);

/// The files of an identity, so that every error can name the one at fault.
struct Files<'a> {
    ca: &'a Path,
    cert: &'a Path,
    key: &'a Path,
    crl: Option<&'a Path>,
}

impl Files<'_> {
    fn roots(&self, authorities: &[CertificateDer<'static>]) -> Result<Arc<RootCertStore>, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in authorities {
            roots.add(certificate.clone()).map_err(|error| unusable(self.ca, error))?;
        }
        Ok(Arc::new(roots))
    }

    /// Of a CA without a list nothing is revoked. A list has no date of expiry here: nodes must go on when
    /// nobody makes a new one.
    fn checker(
        &self,
        roots: &Arc<RootCertStore>,
        lists: Vec<CertificateRevocationListDer<'static>>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
        WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .with_crls(lists)
            .only_check_end_entity_revocation()
            .allow_unknown_revocation_status()
            .build()
            .map_err(|error| unusable(self.crl.unwrap_or(self.ca), error))
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        certificates(self.cert)
    }

    fn certified_key(
        &self,
        chain: Vec<CertificateDer<'static>>,
        provider: &CryptoProvider,
    ) -> Result<Arc<CertifiedKey>, TlsError> {
        refuse_open_key(self.key)?;
        let key = PrivateKeyDer::from_pem_slice(&read(self.key)?)
            .map_err(|_| TlsError::Pem { path: self.key.into(), what: "private key" })?;
        match CertifiedKey::from_der(chain, key, provider) {
            Ok(certified) => Ok(Arc::new(certified)),
            Err(rustls::Error::InconsistentKeys(_)) => {
                Err(TlsError::ForeignKey { key: self.key.into(), cert: self.cert.into() })
            }
            Err(rustls::Error::InvalidCertificate(error)) => Err(unusable(self.cert, error)),
            Err(error) => Err(unusable(self.key, error)),
        }
    }

    /// Puts our own certificate before the verifiers that a peer will put it before.
    fn verify(
        &self,
        roots: &Arc<RootCertStore>,
        chain: &[CertificateDer<'static>],
        provider: &Arc<CryptoProvider>,
        checker: &Arc<dyn ClientCertVerifier>,
        now_unix_s: u64,
    ) -> Result<Verifiers, TlsError> {
        let server = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|error| unusable(self.ca, error))?;
        let client = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|error| unusable(self.ca, error))?;
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now_unix_s));
        let (own, intermediates) = chain.split_first().expect("a chain that loaded has a certificate");
        server.verify_server_cert(own, intermediates, &node_name(), &[], now).map_err(|error| self.rejected(error))?;
        client.verify_client_cert(own, intermediates, now).map_err(|error| self.rejected(error))?;
        checker.verify_client_cert(own, intermediates, now).map_err(|error| self.rejected(error))?;
        Ok(Verifiers { server, client })
    }

    fn rejected(&self, error: rustls::Error) -> TlsError {
        use CertificateError as Fault;
        let path = self.cert.to_path_buf();
        match error {
            rustls::Error::InvalidCertificate(Fault::Expired | Fault::ExpiredContext { .. }) => TlsError::Expired(path),
            rustls::Error::InvalidCertificate(Fault::NotValidYet | Fault::NotValidYetContext { .. }) => {
                TlsError::NotYetValid(path)
            }
            rustls::Error::InvalidCertificate(Fault::UnknownIssuer | Fault::BadSignature) => {
                TlsError::ForeignCa { cert: path, ca: self.ca.into() }
            }
            rustls::Error::InvalidCertificate(Fault::Revoked) => TlsError::Revoked(path),
            rustls::Error::InvalidCertRevocationList(error) => {
                unusable(self.crl.unwrap_or(self.ca), format!("{error:?}"))
            }
            other => unusable(self.cert, other),
        }
    }

    fn expires_unix_s(&self, certificate: &CertificateDer<'_>) -> Result<i64, TlsError> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| unusable(self.cert, error))?;
        Ok(parsed.validity().not_after.timestamp())
    }

    /// Sessions are never resumed: each connection verifies the certificates afresh.
    fn configs(
        &self,
        verifiers: Verifiers,
        certified: Arc<CertifiedKey>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Configs, TlsError> {
        let broken = |error: rustls::Error| unusable(self.cert, error);
        let resolver = Arc::new(SingleCertAndKey::from(certified));
        let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(broken)?
            .with_client_cert_verifier(verifiers.client)
            .with_cert_resolver(resolver.clone());
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.send_tls13_tickets = 0;
        let mut client = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(broken)?
            .with_webpki_verifier(verifiers.server)
            .with_client_cert_resolver(resolver);
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();
        let server = QuicServerConfig::try_from(server).map_err(|error| unusable(self.cert, error))?;
        let client = QuicClientConfig::try_from(client).map_err(|error| unusable(self.cert, error))?;
        Ok((Arc::new(server), Arc::new(client)))
    }
}

fn node_name() -> ServerName<'static> {
    ServerName::try_from(NODE_DNS_NAME).expect("a constant that is a DNS name")
}

fn unusable(path: &Path, reason: impl fmt::Display) -> TlsError {
    TlsError::Unusable { path: path.into(), reason: reason.to_string() }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { path: path.into(), source })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let fault = || TlsError::Pem { path: path.into(), what: "certificate" };
    let found: Vec<_> = CertificateDer::pem_slice_iter(&read(path)?).collect::<Result<_, _>>().map_err(|_| fault())?;
    if found.is_empty() { Err(fault()) } else { Ok(found) }
}

/// A key that others can read is no secret; say so instead of going on.
fn refuse_open_key(path: &Path) -> Result<(), TlsError> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = std::fs::metadata(path).map_err(|source| TlsError::Read { path: path.into(), source })?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 == 0 { Ok(()) } else { Err(TlsError::KeyMode { path: path.into(), mode }) }
}

#[cfg(test)]
mod tests;
