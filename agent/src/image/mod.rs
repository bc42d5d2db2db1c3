//! Images: present or pulled, with the right to them, before a container is created.

mod collect;
mod credentials;
mod record;

pub use collect::collect;
pub use credentials::{Credential, Keyring};

use crate::config::Config;
use crate::container::security::ImageUser;
use crate::event::{Kind, Recorder};
use crate::pod::backoff::RestartBackOff;
use crate::pod::spec;
use crate::runtime::{Result as RuntimeResult, Runtime};
use cri::v1::{AuthConfig, Image as CriImage, ImageSpec, ImageStatusRequest, PodSandboxConfig, PullImageRequest};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use kube::{Api, Client};
use record::Records;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Semaphore;

/// A pull that failed is told at least this long before it is said to be backed off.
const FAILED_PULL: Duration = Duration::from_secs(5);

/// An image that a container may be made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// What the runtime calls it.
    pub id: String,
    pub user: ImageUser,
}

/// Why there is no image yet: a waiting reason and its message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct ImageError {
    pub reason: &'static str,
    pub message: String,
    /// When another try makes sense.
    pub retry: Duration,
}

type Pull = Shared<BoxFuture<'static, std::result::Result<Pulled, String>>>;

#[derive(Clone, Debug)]
struct Pulled {
    image: CriImage,
    /// The fingerprint of the credential that opened the registry; none where it was open to all.
    credential: Option<String>,
    took: Duration,
}

/// The node's images.
pub struct Images {
    runtime: Runtime,
    client: Client,
    events: Recorder,
    permits: Arc<Semaphore>,
    state: Mutex<State>,
    records: Records,
}

#[derive(Default)]
struct State {
    pulls: HashMap<String, Pull>,
    back_off: RestartBackOff,
    failures: HashMap<String, String>,
}

impl Images {
    pub fn new(runtime: Runtime, client: Client, events: Recorder, config: &Config, root_dir: &Path) -> Self {
        let parallel = match (config.serialize_image_pulls, config.max_parallel_image_pulls) {
            (true, _) => 1,
            (false, most) => most.unwrap_or(Semaphore::MAX_PERMITS),
        };
        Self {
            runtime,
            client,
            events,
            permits: Arc::new(Semaphore::new(parallel.clamp(1, Semaphore::MAX_PERMITS))),
            state: Mutex::default(),
            records: Records::open(root_dir.join("image-credentials.json")),
        }
    }

    /// The container's image, pulled where its policy or the pod's credentials ask for it.
    ///
    /// # Errors
    /// The reason and message that the container waits with.
    pub async fn ensure(
        &self,
        pod: &Pod,
        container: &Container,
        sandbox: &PodSandboxConfig,
    ) -> Result<Image, ImageError> {
        let asked = container.image.as_deref().unwrap_or_default();
        let name = credentials::with_tag(asked).ok_or_else(|| ImageError {
            reason: "InvalidImageName",
            message: format!("Failed to apply default image tag {asked:?}: couldn't parse image name {asked:?}: invalid reference format"),
            retry: Duration::from_secs(60),
        })?;
        let policy = policy(container, &name);
        let present = if policy == Policy::Always { None } else { self.present(&name).await? };
        let mut keyring = None;
        if let Some(image) = present
            && self.is_allowed(pod, &name, &image, &mut keyring).await?
        {
            let message =
                format!("Container image {asked:?} already present on machine and can be accessed by the pod");
            self.events.pod(pod, Some(&container.name), Kind::Normal, "Pulled", message);
            return Ok(of_cri(&image));
        }
        if policy == Policy::Never {
            let message = format!("Container image {asked:?} is not present with pull policy of Never");
            self.events.pod(pod, Some(&container.name), Kind::Warning, "ErrImageNeverPull", message.clone());
            return Err(ImageError { reason: "ErrImageNeverPull", message, retry: Duration::from_secs(10) });
        }
        let keyring = match keyring {
            Some(keyring) => keyring,
            None => self.keyring(pod).await?,
        };
        self.pull(pod, container, &name, keyring.matching(&name), sandbox).await
    }

    async fn present(&self, name: &str) -> Result<Option<CriImage>, ImageError> {
        status(&self.runtime, name).await.map_err(|error| ImageError {
            reason: "ImageInspectError",
            message: format!("Failed to inspect image {name:?}: {error}"),
            retry: Duration::from_secs(5),
        })
    }

    /// A present image is for all unless it was pulled with credentials: then for those who have one of them.
    async fn is_allowed(
        &self,
        pod: &Pod,
        name: &str,
        image: &CriImage,
        keyring: &mut Option<Keyring>,
    ) -> Result<bool, ImageError> {
        let Some(needed) = self.records.needed(&image.id, name) else { return Ok(true) };
        let keyring = keyring.insert(self.keyring(pod).await?);
        Ok(keyring.matching(name).iter().any(|credential| needed.contains(&credential.fingerprint())))
    }

    /// The pod's pull secrets. A secret that is missing is passed over, as the kubelet does.
    async fn keyring(&self, pod: &Pod) -> Result<Keyring, ImageError> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), spec::namespace(pod));
        let mut keyring = Keyring::default();
        let references = pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
        for reference in references.filter(|reference| !reference.name.is_empty()) {
            match secrets.get_opt(&reference.name).await {
                Ok(Some(secret)) => keyring.add(&secret),
                Ok(None) => {
                    let name = &reference.name;
                    let message = format!(
                        "Unable to retrieve some image pull secrets ({name}); attempting to pull the image may not succeed."
                    );
                    self.events.pod(pod, None, Kind::Warning, "FailedToRetrieveImagePullSecret", message);
                }
                Err(error) => {
                    return Err(ImageError {
                        reason: "ErrImagePull",
                        message: format!("read image pull secret {:?}: {error}", reference.name),
                        retry: Duration::from_secs(2),
                    });
                }
            }
        }
        Ok(keyring)
    }

    async fn pull(
        &self,
        pod: &Pod,
        container: &Container,
        name: &str,
        credentials: Vec<Credential>,
        sandbox: &PodSandboxConfig,
    ) -> Result<Image, ImageError> {
        let key = format!("{}_{name}", spec::uid(pod));
        let (remaining, last) = {
            let state = self.lock();
            (state.back_off.remaining_since_try(&key, SystemTime::now()), state.failures.get(&key).cloned())
        };
        if let Some(remaining) = remaining {
            let message = format!("Back-off pulling image {name:?}");
            self.events.pod(pod, Some(&container.name), Kind::Normal, "BackOff", message.clone());
            let message = last.map_or(message.clone(), |last| format!("{message}: {last}"));
            return Err(ImageError { reason: "ImagePullBackOff", message, retry: remaining });
        }
        self.events.pod(pod, Some(&container.name), Kind::Normal, "Pulling", format!("Pulling image {name:?}"));
        let begun = Instant::now();
        match self.shared_pull(name, credentials, sandbox).await {
            Ok(pulled) => {
                let message = format!(
                    "Successfully pulled image {name:?} in {} ({} including waiting). Image size: {} bytes.",
                    go_duration(pulled.took),
                    go_duration(begun.elapsed()),
                    pulled.image.size
                );
                self.events.pod(pod, Some(&container.name), Kind::Normal, "Pulled", message);
                self.records.pulled(&pulled.image.id, name, pulled.credential.clone());
                let mut state = self.lock();
                state.failures.remove(&key);
                state.back_off.forget_old(SystemTime::now());
                Ok(of_cri(&pulled.image))
            }
            Err(reason) => {
                let message = format!("Failed to pull image {name:?}: {reason}");
                self.events.pod(pod, Some(&container.name), Kind::Warning, "Failed", message);
                let mut state = self.lock();
                state.back_off.restarted(&key, SystemTime::now());
                state.failures.insert(key, format!("ErrImagePull: {reason}"));
                Err(ImageError { reason: "ErrImagePull", message: reason, retry: FAILED_PULL })
            }
        }
    }

    /// Joins a pull of the same image with the same credentials, or begins one. It goes on without its waiters.
    fn shared_pull(&self, name: &str, credentials: Vec<Credential>, sandbox: &PodSandboxConfig) -> Pull {
        let prints: Vec<String> = credentials.iter().map(Credential::fingerprint).collect();
        let key = format!("{name} {}", prints.join(" "));
        let mut state = self.lock();
        state.pulls.retain(|_, pull| pull.peek().is_none());
        let begin = || {
            let work =
                pull(self.runtime.clone(), Arc::clone(&self.permits), name.to_string(), credentials, sandbox.clone());
            let task = tokio::spawn(work);
            task.map(|ended| ended.unwrap_or_else(|error| Err(format!("the pull broke off: {error}")))).boxed().shared()
        };
        state.pulls.entry(key).or_insert_with(begin).clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn pull(
    runtime: Runtime,
    permits: Arc<Semaphore>,
    name: String,
    credentials: Vec<Credential>,
    sandbox: PodSandboxConfig,
) -> Result<Pulled, String> {
    let _permit = permits.acquire_owned().await.map_err(|_| "pulls have ended".to_string())?;
    let begun = Instant::now();
    let attempts: Vec<Option<Credential>> =
        if credentials.is_empty() { vec![None] } else { credentials.into_iter().map(Some).collect() };
    let mut failure = String::new();
    for credential in attempts {
        let request = PullImageRequest {
            image: Some(ImageSpec { image: name.clone(), user_specified_image: name.clone(), ..ImageSpec::default() }),
            auth: credential.as_ref().map(auth),
            sandbox_config: Some(sandbox.clone()),
        };
        match runtime.pull_image(request).await {
            Ok(answer) => {
                let found = status(&runtime, &answer.image_ref).await.map_err(|error| error.to_string())?;
                let image = match found {
                    Some(image) => image,
                    None => status(&runtime, &name)
                        .await
                        .map_err(|error| error.to_string())?
                        .ok_or_else(|| format!("the runtime pulled {name} and does not know it"))?,
                };
                let credential = credential.map(|credential| credential.fingerprint());
                return Ok(Pulled { image, credential, took: begun.elapsed() });
            }
            Err(error) => failure = error.to_string(),
        }
    }
    Err(failure)
}

fn auth(credential: &Credential) -> AuthConfig {
    AuthConfig {
        username: credential.username.clone(),
        password: credential.password.clone(),
        identity_token: credential.identity_token.clone(),
        // No server: the kubelet leaves it out too, and containerd would give the credentials to no mirror of it.
        ..AuthConfig::default()
    }
}

async fn status(runtime: &Runtime, name: &str) -> RuntimeResult<Option<CriImage>> {
    let image = Some(ImageSpec { image: name.to_string(), ..ImageSpec::default() });
    Ok(runtime.image_status(ImageStatusRequest { image, verbose: false }).await?.image)
}

fn of_cri(image: &CriImage) -> Image {
    let uid = image.uid.as_ref().map(|uid| uid.value);
    // The kubelet takes an image without any user for root's.
    let uid = if uid.is_none() && image.username.is_empty() { Some(0) } else { uid };
    Image { id: image.id.clone(), user: ImageUser { uid, name: image.username.clone() } }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    Always,
    IfNotPresent,
    Never,
}

/// The container's policy, or the API's default for its tag.
fn policy(container: &Container, name: &str) -> Policy {
    match container.image_pull_policy.as_deref() {
        Some("Always") => Policy::Always,
        Some("Never") => Policy::Never,
        Some("IfNotPresent") => Policy::IfNotPresent,
        _ if name.ends_with(":latest") => Policy::Always,
        _ => Policy::IfNotPresent,
    }
}

/// A duration as Go prints it, to milliseconds.
fn go_duration(duration: Duration) -> String {
    match duration.as_millis() {
        0 => "0s".to_string(),
        ms @ 1..1000 => format!("{ms}ms"),
        ms => {
            let seconds = format!("{}", (ms % 60_000) as f64 / 1000.0);
            match (ms / 3_600_000, ms / 60_000 % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, minutes) => format!("{minutes}m{seconds}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_gos() {
        let read = |ms| go_duration(Duration::from_millis(ms));
        assert_eq!([read(0), read(417), read(2005), read(61_200)], ["0s", "417ms", "2.005s", "1m1.2s"]);
    }
}
