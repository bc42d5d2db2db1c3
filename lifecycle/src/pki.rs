//! Certificates and keys: an authority, what it issues, and the files of a cluster under kubeadm's names.
//!
//! All keys are ECDSA P-256 in PKCS #8, all files PEM; keys have mode 0600.

use crate::file::write_atomic;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use time::{Duration, OffsetDateTime};

const LEAF_LIFE: Duration = Duration::days(365);
const CA_LIFE: Duration = Duration::days(3650);
/// A leaf with less than this left is issued anew.
const RENEW_BEFORE: Duration = Duration::days(120);
/// Machines whose clocks lag a little accept a fresh certificate too.
const SKEW: Duration = Duration::minutes(5);

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Write(std::io::Error),
    #[error("make a certificate for {subject}: {source}")]
    Make { subject: String, source: rcgen::Error },
    #[error("make a key: {0}")]
    Key(rcgen::Error),
    #[error("{path} is no key in PEM: {source}")]
    BadKey { path: PathBuf, source: rcgen::Error },
    #[error("{path} is no certificate in PEM: {source}")]
    BadCertificate { path: PathBuf, source: rcgen::Error },
}

/// What a certificate may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    Server,
    Client,
    Both,
}

/// Whom a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The user, to a Kubernetes API server.
    pub common_name: String,
    /// The user's group (O). A certificate carries one at most.
    pub group: Option<String>,
    pub dns: Vec<String>,
    pub ips: Vec<IpAddr>,
    pub usage: Usage,
}

impl Subject {
    /// A user who shows the certificate to a server.
    pub fn client(common_name: impl Into<String>, group: Option<&str>) -> Self {
        Self {
            common_name: common_name.into(),
            group: group.map(str::to_owned),
            dns: Vec::new(),
            ips: Vec::new(),
            usage: Usage::Client,
        }
    }

    /// A server that clients reach under these names and addresses.
    pub fn server(common_name: impl Into<String>, dns: &[String], ips: &[IpAddr]) -> Self {
        Self {
            common_name: common_name.into(),
            group: None,
            dns: dns.to_vec(),
            ips: ips.to_vec(),
            usage: Usage::Server,
        }
    }

    fn params(&self, now: OffsetDateTime) -> Result<CertificateParams, rcgen::Error> {
        let mut params = CertificateParams::new(self.dns.clone())?;
        params.subject_alt_names.extend(self.ips.iter().copied().map(SanType::IpAddress));
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(group) = &self.group {
            params.distinguished_name.push(DnType::OrganizationName, group.as_str());
        }
        params.distinguished_name.push(DnType::CommonName, self.common_name.as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = match self.usage {
            Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Usage::Both => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.use_authority_key_identifier_extension = true;
        params.not_before = now - SKEW;
        params.not_after = now + LEAF_LIFE;
        Ok(params)
    }
}

/// A certificate (or a chain, leaf first) and its key, both PEM.
#[derive(Clone)]
pub struct Identity {
    pub cert_pem: String,
    pub key_pem: String,
}

impl Identity {
    /// A server's certificate that vouches for itself, for a server whom no authority knows yet.
    ///
    /// # Errors
    /// Where a name is not ASCII.
    pub fn self_signed(subject: &Subject) -> Result<Self, PkiError> {
        let key = KeyPair::generate().map_err(PkiError::Key)?;
        let certificate = subject
            .params(OffsetDateTime::now_utc())
            .and_then(|params| params.self_signed(&key))
            .map_err(|source| PkiError::Make { subject: subject.common_name.clone(), source })?;
        Ok(Self { cert_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    /// # Errors
    /// Where a file cannot be read. What is in it is judged when it is used.
    pub fn load(cert: &Path, key: &Path) -> Result<Self, PkiError> {
        Ok(Self { cert_pem: read(cert)?, key_pem: read(key)? })
    }

    /// Writes the key first: a certificate on disk always has its key.
    ///
    /// # Errors
    /// Where a file cannot be written.
    pub fn save(&self, cert: &Path, key: &Path) -> Result<(), PkiError> {
        write_atomic(key, self.key_pem.as_bytes(), 0o600).map_err(PkiError::Write)?;
        write_atomic(cert, self.cert_pem.as_bytes(), 0o644).map_err(PkiError::Write)
    }
}

/// An authority that issues certificates.
pub struct Ca {
    cert_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    /// A new authority with a key of its own, not saved yet.
    ///
    /// # Errors
    /// Where the name is not ASCII.
    pub fn create(common_name: &str) -> Result<Self, PkiError> {
        let make = |source| PkiError::Make { subject: common_name.to_owned(), source };
        let now = OffsetDateTime::now_utc();
        let mut params = CertificateParams::new(vec![common_name.to_owned()]).map_err(make)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::KeyCertSign];
        params.not_before = now - SKEW;
        params.not_after = now + CA_LIFE;
        let key = KeyPair::generate().map_err(PkiError::Key)?;
        let cert_pem = params.self_signed(&key).map_err(make)?.pem();
        Ok(Self { cert_pem, issuer: Issuer::new(params, key) })
    }

    /// # Errors
    /// Where a file cannot be read or is no certificate or key.
    pub fn load(cert: &Path, key: &Path) -> Result<Self, PkiError> {
        let key_pair =
            KeyPair::from_pem(&read(key)?).map_err(|source| PkiError::BadKey { path: key.to_owned(), source })?;
        let cert_pem = read(cert)?;
        let issuer = Issuer::from_ca_cert_pem(&cert_pem, key_pair)
            .map_err(|source| PkiError::BadCertificate { path: cert.to_owned(), source })?;
        Ok(Self { cert_pem, issuer })
    }

    /// Loads the authority, or makes and saves one where its files are not there.
    ///
    /// # Errors
    /// Where the files are there and unusable, or cannot be written.
    pub fn ensure(cert: &Path, key: &Path, common_name: &str) -> Result<Self, PkiError> {
        if cert.exists() {
            return Self::load(cert, key);
        }
        let ca = Self::create(common_name)?;
        Identity { cert_pem: ca.cert_pem.clone(), key_pem: ca.issuer.key().serialize_pem() }.save(cert, key)?;
        Ok(ca)
    }

    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// A certificate and key for `subject`, valid for a year.
    ///
    /// # Errors
    /// Where a name is not ASCII.
    pub fn issue(&self, subject: &Subject) -> Result<Identity, PkiError> {
        let key = KeyPair::generate().map_err(PkiError::Key)?;
        let certificate = subject
            .params(OffsetDateTime::now_utc())
            .and_then(|params| params.signed_by(&key, &self.issuer))
            .map_err(|source| PkiError::Make { subject: subject.common_name.clone(), source })?;
        Ok(Identity { cert_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    /// Loads the identity in these files; issues and saves a new one where they are not there, were issued by another
    /// authority or for another subject, or run out within four months.
    ///
    /// # Errors
    /// As `issue` and `Identity::save`.
    pub fn ensure_identity(&self, cert: &Path, key: &Path, subject: &Subject) -> Result<Identity, PkiError> {
        if let Ok(found) = Identity::load(cert, key)
            && self.still_serves(&found, subject)
        {
            return Ok(found);
        }
        let issued = self.issue(subject)?;
        issued.save(cert, key)?;
        Ok(issued)
    }

    fn still_serves(&self, identity: &Identity, subject: &Subject) -> bool {
        let (Some(leaf), Some(ca)) = (der(&identity.cert_pem), der(&self.cert_pem)) else { return false };
        let (Ok((_, leaf)), Ok((_, ca))) =
            (x509_parser::parse_x509_certificate(&leaf), x509_parser::parse_x509_certificate(&ca))
        else {
            return false;
        };
        let left = leaf.validity().not_after.to_datetime() - OffsetDateTime::now_utc();
        let key_fits = KeyPair::from_pem(&identity.key_pem)
            .is_ok_and(|key| key.public_key_raw() == leaf.public_key().subject_public_key.data.as_ref());
        left > RENEW_BEFORE
            && key_fits
            && names(&leaf) == wanted_names(subject)
            && leaf.verify_signature(Some(ca.public_key())).is_ok()
    }
}

/// Common name, groups, and sorted alternative names, as text.
fn names(certificate: &x509_parser::certificate::X509Certificate<'_>) -> Vec<String> {
    use x509_parser::extensions::GeneralName;
    let subject = certificate.subject();
    let text = |kind: &str, value: &str| format!("{kind}={value}");
    let mut found: Vec<String> =
        subject.iter_common_name().filter_map(|n| n.as_str().ok()).map(|n| text("CN", n)).collect();
    found.extend(subject.iter_organization().filter_map(|n| n.as_str().ok()).map(|n| text("O", n)));
    if let Ok(Some(extension)) = certificate.subject_alternative_name() {
        found.extend(extension.value.general_names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(text("DNS", name)),
            GeneralName::IPAddress(bytes) => address(bytes).map(|ip| text("IP", &ip.to_string())),
            _ => None,
        }));
    }
    found.sort();
    found
}

fn wanted_names(subject: &Subject) -> Vec<String> {
    let mut wanted = vec![format!("CN={}", subject.common_name)];
    wanted.extend(subject.group.iter().map(|group| format!("O={group}")));
    wanted.extend(subject.dns.iter().map(|name| format!("DNS={name}")));
    wanted.extend(subject.ips.iter().map(|ip| format!("IP={ip}")));
    wanted.sort();
    wanted
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn der(pem: &str) -> Option<Vec<u8>> {
    x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok().map(|(_, pem)| pem.contents)
}

fn read(path: &Path) -> Result<String, PkiError> {
    std::fs::read_to_string(path).map_err(|source| PkiError::Read { path: path.to_owned(), source })
}

/// The authorities of a cluster, and where its files are.
pub struct ClusterPki {
    pub dir: PathBuf,
    /// Issues what the API server and the kubelets trust.
    pub ca: Ca,
}

impl ClusterPki {
    /// A file of this folder, as `apiserver.crt`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// Makes what is missing of a cluster's identities in `dir`, under kubeadm's names: `ca`, `apiserver` (serving, for
/// `dns` and `ips`), `apiserver-kubelet-client`, `front-proxy-ca`, `front-proxy-client`, each `.crt` and `.key`, and
/// the service accounts' `sa.key` and `sa.pub`. What is there and serves is left as it is.
///
/// # Errors
/// Where a file is there and unusable, or cannot be written.
pub fn ensure_cluster_pki(dir: &Path, dns: &[String], ips: &[IpAddr]) -> Result<ClusterPki, PkiError> {
    std::fs::create_dir_all(dir).map_err(PkiError::Write)?;
    let at = |name: &str| dir.join(name);
    let ca = Ca::ensure(&at("ca.crt"), &at("ca.key"), "kubernetes")?;
    let serving = Subject::server("kube-apiserver", dns, ips);
    ca.ensure_identity(&at("apiserver.crt"), &at("apiserver.key"), &serving)?;
    let kubelet_client = Subject::client("kube-apiserver-kubelet-client", Some("system:masters"));
    ca.ensure_identity(&at("apiserver-kubelet-client.crt"), &at("apiserver-kubelet-client.key"), &kubelet_client)?;
    let front = Ca::ensure(&at("front-proxy-ca.crt"), &at("front-proxy-ca.key"), "front-proxy-ca")?;
    let front_client = Subject::client("front-proxy-client", None);
    front.ensure_identity(&at("front-proxy-client.crt"), &at("front-proxy-client.key"), &front_client)?;
    ensure_service_account_keys(&at("sa.key"), &at("sa.pub"))?;
    Ok(ClusterPki { dir: dir.to_owned(), ca })
}

/// The key pair with which service account tokens are signed (ES256) and checked.
fn ensure_service_account_keys(private: &Path, public: &Path) -> Result<(), PkiError> {
    let key = if private.exists() {
        KeyPair::from_pem(&read(private)?).map_err(|source| PkiError::BadKey { path: private.to_owned(), source })?
    } else {
        let key = KeyPair::generate().map_err(PkiError::Key)?;
        write_atomic(private, key.serialize_pem().as_bytes(), 0o600).map_err(PkiError::Write)?;
        key
    };
    if !public.exists() {
        write_atomic(public, key.public_key_pem().as_bytes(), 0o644).map_err(PkiError::Write)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn contents(dir: &Path) -> Vec<(String, String)> {
        let mut files: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read_to_string(path).unwrap())
            })
            .collect();
        files.sort();
        files
    }

    #[test]
    fn cluster_pki_is_made_once_and_serving_follows_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let dns = ["kubernetes".to_owned(), "kubernetes.default.svc".to_owned()];
        let ips = ["10.96.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        ensure_cluster_pki(dir.path(), &dns, &ips).unwrap();
        let first = contents(dir.path());
        assert_eq!(first.len(), 12);
        for (name, _) in &first {
            let mode = std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, if name.ends_with(".key") { 0o600 } else { 0o644 }, "{name}");
        }

        ensure_cluster_pki(dir.path(), &dns, &ips).unwrap();
        assert_eq!(contents(dir.path()), first);

        ensure_cluster_pki(dir.path(), &dns, &ips[..1]).unwrap();
        let changed: Vec<String> =
            contents(dir.path()).into_iter().filter(|file| !first.contains(file)).map(|(name, _)| name).collect();
        assert_eq!(changed, ["apiserver.crt", "apiserver.key"]);
    }

    #[test]
    fn issued_certificates_carry_their_subject() {
        let ca = Ca::create("kubernetes").unwrap();
        let subject = Subject::client("system:node:n1", Some("system:nodes"));
        let issued = ca.issue(&subject).unwrap();
        let der = der(&issued.cert_pem).unwrap();
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert_eq!(names(&certificate), ["CN=system:node:n1", "O=system:nodes"]);
        assert!(ca.still_serves(&issued, &subject));
        assert!(!Ca::create("kubernetes").unwrap().still_serves(&issued, &subject));
    }
}
