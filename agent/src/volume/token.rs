//! Service account tokens, bound to their pod: asked for when a volume needs one, and anew before they age.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount, ServiceAccountTokenProjection};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::PostParams;

/// Life of a token that does not say, seconds.
const DEFAULT_LIFE: i64 = 3600;
/// The oldest that a token gets, seconds: 24 hours.
const MAX_AGE: i64 = 24 * 3600;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct TokenKey {
    uid: String,
    account: String,
    audience: String,
    life: i64,
}

#[derive(Clone)]
struct Token {
    value: String,
    issued: i64,
    expires: i64,
}

/// The tokens that lie in volumes now.
pub(super) struct Tokens {
    client: kube::Client,
    known: Mutex<HashMap<TokenKey, Token>>,
}

impl Tokens {
    pub(super) fn new(client: kube::Client) -> Self {
        Self { client, known: Mutex::default() }
    }

    /// The token for a projection; the one in use while it is fresh, or while the API server gives no other.
    ///
    /// # Errors
    /// What the API server said.
    pub(super) async fn get(&self, pod: &Pod, projection: &ServiceAccountTokenProjection) -> Result<String, String> {
        let key = key(pod, projection);
        let now = Timestamp::now().as_second();
        let known = self.known().get(&key).cloned();
        if let Some(token) = known.as_ref().filter(|t| !is_due(now, t.issued, t.expires)) {
            return Ok(token.value.clone());
        }
        match self.request(pod, &key).await {
            Ok(token) => {
                let value = token.value.clone();
                self.known().insert(key, token);
                Ok(value)
            }
            Err(reason) => match known.filter(|t| t.expires > now) {
                Some(old) => {
                    tracing::warn!(pod = %key.uid, "refresh a service account token: {reason}");
                    Ok(old.value)
                }
                None => Err(reason),
            },
        }
    }

    /// Uids of the pods with a token that should be replaced.
    pub(super) fn due(&self) -> Vec<String> {
        let now = Timestamp::now().as_second();
        let known = self.known();
        let mut due: Vec<_> =
            known.iter().filter(|(_, t)| is_due(now, t.issued, t.expires)).map(|(key, _)| key.uid.clone()).collect();
        due.dedup();
        due
    }

    pub(super) fn forget(&self, pod_uid: &str) {
        self.known().retain(|key, _| key.uid != pod_uid);
    }

    async fn request(&self, pod: &Pod, key: &TokenKey) -> Result<Token, String> {
        let api: Api<ServiceAccount> =
            Api::namespaced(self.client.clone(), pod.metadata.namespace.as_deref().unwrap_or_default());
        let spec = TokenRequestSpec {
            audiences: Some(if key.audience.is_empty() { Vec::new() } else { vec![key.audience.clone()] }),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: pod.metadata.name.clone(),
                uid: Some(key.uid.clone()),
            }),
            expiration_seconds: Some(key.life),
            ..TokenRequestSpec::default()
        };
        let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let issued = Timestamp::now().as_second();
        let answer = api.create_token_request(&key.account, &PostParams::default(), &request).await;
        let status = match answer {
            Ok(answer) => answer.status.unwrap_or_default(),
            Err(kube::Error::Api(status)) => return Err(status.message.clone()),
            Err(other) => return Err(other.to_string()),
        };
        let value = status.token.filter(|t| !t.is_empty()).ok_or("the API server returned no token")?;
        let expires = status.expiration_timestamp.map_or(issued + key.life, |time| time.0.as_second());
        Ok(Token { value, issued, expires })
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<TokenKey, Token>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(pod: &Pod, projection: &ServiceAccountTokenProjection) -> TokenKey {
    let account = pod.spec.as_ref().and_then(|s| s.service_account_name.clone()).filter(|a| !a.is_empty());
    TokenKey {
        uid: super::uid(pod).into(),
        account: account.unwrap_or_else(|| "default".into()),
        audience: projection.audience.clone().unwrap_or_default(),
        life: projection.expiration_seconds.unwrap_or(DEFAULT_LIFE),
    }
}

/// After 80 % of its life, or a day: times in seconds since the epoch.
fn is_due(now: i64, issued: i64, expires: i64) -> bool {
    let life = expires - issued;
    now >= expires - life / 5 || now - issued >= MAX_AGE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_renewed_at_four_fifths_of_their_life_or_after_a_day() {
        assert_eq!([is_due(2879, 0, 3600), is_due(2880, 0, 3600)], [false, true]);
        assert_eq!([is_due(86_399, 0, 31_536_000), is_due(86_400, 0, 31_536_000)], [false, true]);
    }
}
