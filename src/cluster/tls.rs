//! Identities: which certificate a node shows, and how it checks those of others.
//!
//! An identity is a certificate of the cluster's CA whose URI SAN carries the node's EID. All checking is
//! done by the standard verifiers of rustls: every node's certificate also carries the one fixed DNS name
//! [`NODE_DNS_NAME`], which a dialler asks for whatever address it dials.
//!
//! Never here: a certificate verifier of our own, a process-wide crypto provider, the wall clock.
//! Invariant: an [`Identity`] that loaded is one that peers with the same CA accept, until it expires.

mod issue;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, RootCertStore};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

pub use issue::{CA_CERT_FILE, CA_KEY_FILE, CA_VALID_DAYS, Issued, NODE_VALID_DAYS, init_ca, issue};

use crate::core::eid::{Eid, EidError};

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
}

/// The EID that a certificate is issued to.
pub fn certificate_eid(certificate: &CertificateDer<'_>) -> Result<Eid, CertificateEidError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| CertificateEidError::Malformed)?;
    let names = parsed.subject_alternative_name().map_err(|_| CertificateEidError::Malformed)?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let eids: Vec<&str> = names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix(EID_URI_PREFIX),
            _ => None,
        })
        .collect();
    let [text] = eids[..] else { return Err(CertificateEidError::NotOne(eids.len())) };
    let eid: Eid = text.parse()?;
    if eid.is_empty() { Err(CertificateEidError::Empty) } else { Ok(eid) }
}

/// The EID in the verified certificate of the peer on the other side.
pub fn peer_eid(connection: &quinn::Connection) -> Result<Eid, CertificateEidError> {
    let identity = connection.peer_identity().ok_or(CertificateEidError::NoCertificate)?;
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>().map_err(|_| CertificateEidError::NoCertificate)?;
    certificate_eid(chain.first().ok_or(CertificateEidError::NoCertificate)?)
}

/// A node's certificate, key and CA, checked against each other.
#[derive(Clone)]
pub struct Identity {
    eid: Eid,
    expires_unix_s: i64,
    server: Arc<QuicServerConfig>,
    client: Arc<QuicClientConfig>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({}, expires {})", self.eid, self.expires_unix_s)
    }
}

impl Identity {
    /// Reads the three files and checks all that can be checked before a peer does. `ca` may hold several
    /// certificates (a change of CA), `cert` may hold intermediates behind the node's own.
    pub fn load(ca: &Path, cert: &Path, key: &Path, now_unix_s: u64) -> Result<Self, TlsError> {
        let files = Files { ca, cert, key };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = files.roots()?;
        let chain = files.chain()?;
        let certified = files.certified_key(chain.clone(), &provider)?;
        let verifiers = files.verify(&roots, &chain, &provider, now_unix_s)?;
        let eid = certificate_eid(&chain[0]).map_err(|source| TlsError::Eid { path: cert.into(), source })?;
        let expires_unix_s = files.expires_unix_s(&chain[0])?;
        let (server, client) = files.configs(verifiers, certified, provider)?;
        Ok(Self { eid, expires_unix_s, server, client })
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
}

impl Files<'_> {
    fn roots(&self) -> Result<Arc<RootCertStore>, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(self.ca)? {
            roots.add(certificate).map_err(|error| unusable(self.ca, error))?;
        }
        Ok(Arc::new(roots))
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
