//! Whom a registry's connection trusts and what it shows: the system's authorities and those of hosts.toml.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lifecycle::tls::HoldsItsKey;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::hosts::HostConfig;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {0}: {1}")]
    Read(PathBuf, String),
    #[error("{0} holds no certificate in PEM")]
    NoCertificate(PathBuf),
    #[error("{0} holds no private key in PEM")]
    NoKey(PathBuf),
    #[error("the certificate of {0} cannot be used: {1}")]
    Unusable(PathBuf, String),
}

/// The side of the client for one host. Reads files: not for an asynchronous thread.
///
/// # Errors
/// Where a file of hosts.toml cannot be used.
pub fn client_config(host: &HostConfig, system: &[CertificateDer<'static>]) -> Result<ClientConfig, TlsError> {
    let provider = CryptoProvider::get_default()
        .cloned()
        .unwrap_or_else(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    let verifier: Arc<dyn ServerCertVerifier> = if host.skip_verify == Some(true) {
        Arc::new(HoldsItsKey(provider.clone()))
    } else {
        let named = host.ca.iter().map(|file| certificates(file)).collect::<Result<Vec<_>, _>>()?.concat();
        let inner = authorities(system, &named, provider.clone())?;
        Arc::new(Trusting { inner, named, signatures: HoldsItsKey(provider.clone()) })
    };
    let pairs = host.client.iter().map(|(certificate, key)| pair(certificate, key.as_deref(), &provider));
    let shown = Shown(pairs.collect::<Result<_, _>>()?);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(rustls::DEFAULT_VERSIONS)
        .map_err(|error| TlsError::Unusable(PathBuf::new(), error.to_string()))?;
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_client_cert_resolver(Arc::new(shown)))
}

/// The system's authorities; `SSL_CERT_FILE` and `SSL_CERT_DIR` lead elsewhere. Reads files.
pub fn system_authorities() -> Vec<CertificateDer<'static>> {
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::debug!(%error, "an authority of the system cannot be read");
    }
    system.certs
}

fn authorities(
    system: &[CertificateDer<'static>],
    named: &[CertificateDer<'static>],
    provider: Arc<CryptoProvider>,
) -> Result<Option<Arc<WebPkiServerVerifier>>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(system.iter().cloned());
    roots.add_parsable_certificates(named.iter().cloned());
    if roots.is_empty() {
        return Ok(None);
    }
    let built = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
    built.map(Some).map_err(|error| TlsError::Unusable(PathBuf::new(), error.to_string()))
}

fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(file).map_err(|error| TlsError::Read(file.to_owned(), error.to_string()))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(file)?).collect();
    found.ok().filter(|found| !found.is_empty()).ok_or_else(|| TlsError::NoCertificate(file.to_owned()))
}

fn pair(file: &Path, key: Option<&Path>, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, TlsError> {
    let key_file = key.unwrap_or(file);
    let key = PrivateKeyDer::from_pem_slice(&read(key_file)?).map_err(|_| TlsError::NoKey(key_file.to_owned()))?;
    let pair = CertifiedKey::from_der(certificates(file)?, key, provider);
    pair.map(Arc::new).map_err(|error| TlsError::Unusable(file.to_owned(), error.to_string()))
}

/// What we show where a server asks: the first certificate whose key it can check.
#[derive(Debug)]
struct Shown(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.iter().find(|pair| pair.key.choose_scheme(schemes).is_some()).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// Trusts authorities, and a server's own certificate where hosts.toml names it: such a certificate often says of itself
/// that it is an authority, which the strict rules refuse at the end of a chain.
#[derive(Debug)]
struct Trusting {
    /// None where there is no authority at all: the system's are not installed.
    inner: Option<Arc<WebPkiServerVerifier>>,
    named: Vec<CertificateDer<'static>>,
    signatures: HoldsItsKey,
}

impl Trusting {
    fn is_named_itself(&self, shown: &CertificateDer<'_>, name: &ServerName<'_>, now: UnixTime) -> Result<bool, Error> {
        if !self.named.iter().any(|named| named.as_ref() == shown.as_ref()) {
            return Ok(false);
        }
        verify_server_name(&ParsedCertificate::try_from(shown)?, name)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(shown.as_ref())
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if now > parsed.validity().not_after.timestamp() {
            return Err(CertificateError::Expired.into());
        }
        if now < parsed.validity().not_before.timestamp() {
            return Err(CertificateError::NotValidYet.into());
        }
        Ok(true)
    }
}

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let usual = match &self.inner {
            Some(inner) => inner.verify_server_cert(shown, between, name, ocsp, now),
            None => Err(CertificateError::UnknownIssuer.into()),
        };
        match usual {
            Err(error) => match self.is_named_itself(shown, name, now)? {
                true => Ok(ServerCertVerified::assertion()),
                false => Err(error),
            },
            fine => fine,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signatures.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signatures.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signatures.supported_verify_schemes()
    }
}
