//! TLS for servers and clients: who shows which certificate, and whom each trusts. TLS 1.3 and 1.2.

use crate::pki::{Identity, PkiError};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the certificate is no PEM: {0}")]
    Certificate(rustls::pki_types::pem::Error),
    #[error("the key is no PEM: {0}")]
    Key(rustls::pki_types::pem::Error),
    #[error("the bundle of authorities holds no certificate")]
    NoAuthority,
    #[error("certificate and key: {0}")]
    Rejected(#[from] rustls::Error),
    #[error(transparent)]
    Read(#[from] PkiError),
    #[error("the bundle of authorities: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// What a client believes of a server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ServerTrust<'a> {
    /// Its certificate is issued by one of these (PEM) for the name or address that was dialled.
    Authority(&'a str),
    /// Anybody who holds the key to the certificate he shows; as the API server meets kubelets that sign their own.
    Anybody,
}

/// A server's side. With `client_authorities` (PEM) a client may show a certificate; one that none of them issued for
/// client use ends the handshake, and none at all is accepted: whoever handles the request decides about that.
///
/// Offers `h2` and `http/1.1`.
///
/// # Errors
/// Where the PEM cannot be read or the key does not fit the certificate.
pub fn server_config(identity: &Identity, client_authorities: Option<&str>) -> Result<ServerConfig, TlsError> {
    let own = certified(identity, &provider())?;
    server_that_shows(Arc::new(SingleCertAndKey::from(own)), client_authorities)
}

/// As `server_config`, for a certificate and a key in files: when these change, the next handshake shows what is in them
/// then. Where that is no pair, as between the writing of one and of the other, the last good pair is shown.
///
/// # Errors
/// As `server_config`, and where a file cannot be read.
pub fn reloading_server_config(
    cert: &Path,
    key: &Path,
    client_authorities: Option<&str>,
) -> Result<ServerConfig, TlsError> {
    server_that_shows(Arc::new(Reloading::open(cert, key)?), client_authorities)
}

fn server_that_shows(
    own: Arc<dyn ResolvesServerCert>,
    client_authorities: Option<&str>,
) -> Result<ServerConfig, TlsError> {
    let provider = provider();
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(rustls::DEFAULT_VERSIONS)?;
    let builder = match client_authorities {
        Some(pem) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(pem)?), provider)
                .allow_unauthenticated()
                .build()?;
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(own);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// A client's side, with a certificate of its own where it has one. ALPN is left empty: an HTTP connector sets it, and
/// a connection that will be upgraded must stay at HTTP/1.1.
///
/// # Errors
/// As `server_config`.
pub fn client_config(trust: ServerTrust<'_>, identity: Option<&Identity>) -> Result<ClientConfig, TlsError> {
    let provider = provider();
    let builder =
        ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(rustls::DEFAULT_VERSIONS)?;
    let builder = match trust {
        ServerTrust::Authority(pem) => builder.with_root_certificates(roots(pem)?),
        ServerTrust::Anybody => builder.dangerous().with_custom_certificate_verifier(Arc::new(HoldsItsKey(provider))),
    };
    Ok(match identity {
        Some(own) => builder.with_client_auth_cert(chain(&own.cert_pem)?, key(&own.key_pem)?)?,
        None => builder.with_no_client_auth(),
    })
}

fn provider() -> Arc<CryptoProvider> {
    CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
}

fn certified(identity: &Identity, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    Ok(CertifiedKey::from_der(chain(&identity.cert_pem)?, key(&identity.key_pem)?, provider)?)
}

fn chain(pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(TlsError::Certificate)
}

fn key(pem: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(TlsError::Key)
}

fn roots(pem: &str) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in chain(pem)? {
        store.add(certificate)?;
    }
    if store.is_empty() {
        return Err(TlsError::NoAuthority);
    }
    Ok(store)
}

/// When the certificate's and the key's file were last changed, where they are there.
type Changed = [Option<SystemTime>; 2];

/// A pair in files, read again when one of them changes.
#[derive(Debug)]
struct Reloading {
    cert: PathBuf,
    key: PathBuf,
    provider: Arc<CryptoProvider>,
    last: Mutex<(Changed, Arc<CertifiedKey>)>,
}

impl Reloading {
    fn open(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let provider = provider();
        // The times first: a change while the files are read is seen at the next handshake.
        let changed = changed(cert, key);
        let pair = Arc::new(certified(&Identity::load(cert, key)?, &provider)?);
        Ok(Self { cert: cert.to_owned(), key: key.to_owned(), provider, last: Mutex::new((changed, pair)) })
    }

    fn pair(&self) -> Arc<CertifiedKey> {
        let changed = changed(&self.cert, &self.key);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.0 != changed {
            last.0 = changed;
            let read = Identity::load(&self.cert, &self.key).map_err(TlsError::from);
            match read.and_then(|identity| certified(&identity, &self.provider)) {
                Ok(pair) => last.1 = Arc::new(pair),
                Err(error) => {
                    tracing::warn!(cert = %self.cert.display(), %error, "a changed certificate is not taken up");
                }
            }
        }
        last.1.clone()
    }
}

impl ResolvesServerCert for Reloading {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.pair())
    }
}

fn changed(cert: &Path, key: &Path) -> Changed {
    [cert, key].map(|path| std::fs::metadata(path).and_then(|found| found.modified()).ok())
}

/// Asks a server for the key to its certificate and for nothing more.
#[derive(Debug)]
pub struct HoldsItsKey(pub Arc<CryptoProvider>);

impl ServerCertVerifier for HoldsItsKey {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{Ca, Subject};
    use rustls::{ClientConnection, ServerConnection};

    /// Shakes hands in memory; yields how many certificates the server saw of the client.
    fn handshake(server: ServerConfig, client: ClientConfig) -> Result<usize, rustls::Error> {
        let mut server = ServerConnection::new(Arc::new(server))?;
        let mut client = ClientConnection::new(Arc::new(client), ServerName::try_from("10.96.0.1").unwrap())?;
        let mut wire = Vec::new();
        while client.is_handshaking() || server.is_handshaking() {
            wire.clear();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets()?;
            wire.clear();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        Ok(server.peer_certificates().map_or(0, <[_]>::len))
    }

    fn server(ca: &Ca) -> ServerConfig {
        let ips = ["10.96.0.1".parse().unwrap()];
        let identity = ca.issue(&Subject::server("kube-apiserver", &[], &ips)).unwrap();
        server_config(&identity, Some(ca.cert_pem())).unwrap()
    }

    #[test]
    fn client_certificates_are_optional_and_must_be_ours() {
        let (ca, other) = (Ca::create("kubernetes").unwrap(), Ca::create("kubernetes").unwrap());
        let trust = ServerTrust::Authority(ca.cert_pem());
        let subject = Subject::client("kubernetes-admin", Some("system:masters"));
        let (ours, theirs) = (ca.issue(&subject).unwrap(), other.issue(&subject).unwrap());

        assert_eq!(handshake(server(&ca), client_config(trust, Some(&ours)).unwrap()).unwrap(), 1);
        assert_eq!(handshake(server(&ca), client_config(trust, None).unwrap()).unwrap(), 0);
        assert!(handshake(server(&ca), client_config(trust, Some(&theirs)).unwrap()).is_err());
    }

    #[test]
    fn changed_files_are_shown_once_they_are_a_pair() {
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
        let (first, second) = (Ca::create("first").unwrap(), Ca::create("second").unwrap());
        let issue = |ca: &Ca| ca.issue(&Subject::server("s", &[], &["10.96.0.1".parse().unwrap()])).unwrap();
        issue(&first).save(&cert, &key).unwrap();
        let server = reloading_server_config(&cert, &key, None).unwrap();
        let shown = |by: &Ca| {
            let trust = ServerTrust::Authority(by.cert_pem());
            handshake(server.clone(), client_config(trust, None).unwrap()).is_ok()
        };
        assert!(shown(&first));
        let next = issue(&second);
        crate::file::write_atomic(&key, next.key_pem.as_bytes(), 0o600).unwrap();
        assert!(shown(&first), "a key without its certificate is not taken up");
        next.save(&cert, &key).unwrap();
        assert!(shown(&second) && !shown(&first));
    }

    #[test]
    fn servers_are_checked_unless_anybody_will_do() {
        let (ca, other) = (Ca::create("kubernetes").unwrap(), Ca::create("kubernetes").unwrap());
        let strict = client_config(ServerTrust::Authority(other.cert_pem()), None).unwrap();
        assert!(handshake(server(&ca), strict).is_err());
        let lax = client_config(ServerTrust::Anybody, None).unwrap();
        assert_eq!(handshake(server(&ca), lax).unwrap(), 0);
    }
}
