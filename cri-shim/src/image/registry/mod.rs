//! A registry, for one pull: the hosts at which it is reached, asked in turn. Source: OCI distribution specification
//! 1.1, "Pull"; containerd's docs/hosts.md.
//!
//! A host that could not be reached is asked last from then on; one that lies is passed over for what it lied about.

pub mod auth;
mod connect;
pub mod failure;
#[cfg(test)]
pub mod fake;
mod host;
pub mod hosts;
pub mod proxy;
mod tls;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, Method};

use self::auth::Auth;
use self::connect::Dialer;
use self::failure::{FailureKind, HostFailure};
pub use self::host::{Blob, Host};
use self::host::{Context, Wanted};
use self::hosts::HostConfig;
use self::proxy::Proxies;
use super::ImageError;
use super::digest::Digest;
use super::manifest::{self, DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, OCI_INDEX, OCI_MANIFEST};
use super::reference::Reference;

/// How long a connection may take where hosts.toml does not say.
const DIAL: Duration = Duration::from_secs(30);
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json, */*";

/// How registries are met.
#[derive(Debug, Clone)]
pub struct RegistrySettings {
    /// The folder with a folder for each registry; several with colons between.
    pub certs_dir: Option<PathBuf>,
    /// Without a byte for this long a host is given up.
    pub stall: Duration,
}

/// The hosts of a reference's registry.
pub struct Registry {
    reference: Reference,
    hosts: Vec<Arc<Host>>,
}

/// What a reference means now.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    pub descriptor: Descriptor,
    /// The document, where finding out brought it along.
    pub bytes: Option<Bytes>,
}

/// Which address of the API a small blob has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Manifests,
    Blobs,
}

impl Registry {
    /// Reads hosts.toml and the environment; nothing is connected yet.
    ///
    /// # Errors
    /// Where these, or the credentials, cannot be understood.
    pub async fn open(
        reference: Reference,
        settings: &RegistrySettings,
        auth: Option<&Auth>,
    ) -> Result<Self, ImageError> {
        let proxies = Proxies::from_env().map_err(|error| setup(&reference, &error))?;
        Self::open_through(reference, settings, auth, proxies).await
    }

    async fn open_through(
        reference: Reference,
        settings: &RegistrySettings,
        auth: Option<&Auth>,
        proxies: Proxies,
    ) -> Result<Self, ImageError> {
        let proxies = Arc::new(proxies);
        let (certs_dir, registry) = (settings.certs_dir.clone(), reference.registry().to_owned());
        let configured = tokio::task::spawn_blocking(move || configure(certs_dir, &registry)).await;
        let configured = configured.map_err(|error| setup(&reference, &error))?;
        let configured = configured.map_err(|why| setup(&reference, &why))?;
        let mut hosts = Vec::new();
        for (config, tls) in configured {
            let credentials = auth.map(|auth| auth.for_host(&config.authority)).transpose();
            let credentials = credentials.map_err(|error| setup(&reference, &error))?.flatten();
            let patience = config.dial_timeout.unwrap_or(DIAL);
            let dialer = Dialer { proxies: proxies.clone(), tls: Arc::new(tls), patience };
            let context = Context {
                registry: reference.registry(),
                repository: reference.path(),
                credentials,
                stall: settings.stall,
            };
            hosts.push(Arc::new(Host::new(config, dialer, context)));
        }
        Ok(Self { reference, hosts })
    }

    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// Asks what the reference means now.
    ///
    /// # Errors
    /// Why no host says it.
    pub async fn resolve(&self) -> Result<Resolved, ImageError> {
        let mut failures = Vec::new();
        for host in self.in_turn(|host| host.resolve) {
            match self.resolve_at(&host).await {
                Ok(resolved) => return Ok(resolved),
                Err(failure) => failures.push(failure),
            }
        }
        Err(self.failed(failures))
    }

    async fn resolve_at(&self, host: &Host) -> Result<Resolved, HostFailure> {
        let path = format!("/{}/manifests/{}", self.reference.path(), self.reference.object());
        let mut wanted = Wanted { method: Method::HEAD, path, accept: MANIFESTS, from: 0 };
        match host.send(&wanted).await {
            Ok(answer) => {
                if let Some(descriptor) = told(answer.headers(), self.reference.digest()) {
                    return Ok(Resolved { descriptor, bytes: None });
                }
            }
            // Some hosts do not know HEAD.
            Err(HostFailure { kind: FailureKind::Status(..) | FailureKind::NotFound(_), .. }) => {}
            Err(failure) => return Err(failure),
        }
        wanted.method = Method::GET;
        let answer = host.send(&wanted).await?;
        let bytes = host.small_body(answer.into_body(), manifest::LIMIT).await.map_err(|kind| host.failure(kind))?;
        let wrong = |why: String| host.failure(FailureKind::Wrong(why));
        if let Some(digest) = self.reference.digest()
            && !digest.fits(&bytes)
        {
            return Err(wrong(format!("a manifest of digest {}", Digest::of(&bytes))));
        }
        let (media_type, _) = manifest::decode(&bytes).map_err(|error| wrong(error.to_string()))?;
        let mut descriptor = Descriptor::new(media_type, &bytes);
        if let Some(digest) = self.reference.digest() {
            descriptor.digest = digest.clone();
        }
        Ok(Resolved { descriptor, bytes: Some(bytes) })
    }

    /// A small blob, whole, with its digest proven.
    ///
    /// # Errors
    /// Why no host gives it.
    pub async fn small(&self, kind: Kind, descriptor: &Descriptor) -> Result<Bytes, ImageError> {
        let mut failures = Vec::new();
        for host in self.pull_hosts() {
            match self.small_from(&host, kind, descriptor).await {
                Ok(bytes) => return Ok(bytes),
                Err(failure) => failures.push(failure),
            }
        }
        Err(self.failed(failures))
    }

    async fn small_from(&self, host: &Host, kind: Kind, descriptor: &Descriptor) -> Result<Bytes, HostFailure> {
        let (path, accept) = match kind {
            Kind::Manifests => (format!("/{}/manifests/{}", self.reference.path(), descriptor.digest), MANIFESTS),
            Kind::Blobs => (self.blob_path(descriptor), ""),
        };
        let answer = host.send(&Wanted { method: Method::GET, path, accept, from: 0 }).await?;
        let bytes = host.small_body(answer.into_body(), manifest::LIMIT).await.map_err(|kind| host.failure(kind))?;
        if descriptor.digest.fits(&bytes) {
            if bytes.len() as u64 == descriptor.size {
                return Ok(bytes);
            }
            let why = format!("{} has {} bytes, not {}", descriptor.digest, bytes.len(), descriptor.size);
            return Err(host.failure(FailureKind::Wrong(why)));
        }
        let found = Digest::of(&bytes);
        Err(host.failure(FailureKind::Wrong(format!("{found} in place of {}", descriptor.digest))))
    }

    /// The hosts that give content, in the order in which to ask them.
    pub fn pull_hosts(&self) -> Vec<Arc<Host>> {
        self.in_turn(|host| host.pull)
    }

    pub fn blob_path(&self, descriptor: &Descriptor) -> String {
        format!("/{}/blobs/{}", self.reference.path(), descriptor.digest)
    }

    fn in_turn(&self, able: impl Fn(&HostConfig) -> bool) -> Vec<Arc<Host>> {
        let mut hosts: Vec<_> = self.hosts.iter().filter(|host| able(&host.config)).cloned().collect();
        hosts.sort_by_key(|host| host.is_unreachable());
        hosts
    }

    /// The error for a pull where each host failed.
    pub fn failed(&self, failures: Vec<HostFailure>) -> ImageError {
        ImageError::Pull { reference: self.reference.to_string(), failures }
    }
}

fn setup(reference: &Reference, why: &dyn std::fmt::Display) -> ImageError {
    ImageError::Setup { reference: reference.to_string(), why: why.to_string() }
}

/// hosts.toml and the certificates it names. Reads files.
fn configure(certs_dir: Option<PathBuf>, registry: &str) -> Result<Vec<(HostConfig, rustls::ClientConfig)>, String> {
    let hosts = hosts::load(certs_dir.as_deref(), registry).map_err(|error| error.to_string())?;
    let system = tls::system_authorities();
    let with_tls = |host: HostConfig| match tls::client_config(&host, &system) {
        Ok(tls) => Ok((host, tls)),
        Err(error) => Err(error.to_string()),
    };
    hosts.into_iter().map(with_tls).collect()
}

/// The descriptor that an answer's headers tell, where they tell it all. A digest that was asked for must be told too.
fn told(headers: &HeaderMap, asked: Option<&Digest>) -> Option<Descriptor> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let digest = Digest::parse(text("docker-content-digest")?).ok()?;
    let media_type = text(CONTENT_TYPE.as_str())?.split(';').next()?.trim();
    let known = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST];
    let media_type = known.into_iter().find(|known| *known == media_type)?;
    let size: u64 = text(CONTENT_LENGTH.as_str())?.parse().ok()?;
    if size == 0 || asked.is_some_and(|asked| *asked != digest) {
        return None;
    }
    Some(Descriptor { media_type: media_type.to_owned(), digest, size, platform: None, annotations: None })
}

#[cfg(test)]
mod tests;
