//! Who asks: a client certificate, or a bearer token that the API server vouches for.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderMap;
use http::header::AUTHORIZATION;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::Api;
use kube::api::PostParams;
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::Authentication;

const AUTHENTICATED: &str = "system:authenticated";
/// Answers that are remembered at most.
pub(super) const MAX_CACHED: usize = 4096;

/// A client whose identity is proven.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// The user that a verified client certificate names: CN is the name, each O a group.
    pub(super) fn of_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let subject = parsed.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let mut groups: Vec<String> =
            subject.iter_organization().filter_map(|o| o.as_str().ok()).map(String::from).collect();
        groups.push(AUTHENTICATED.into());
        Some(Self { name, groups, ..Self::default() })
    }
}

/// An answer and until when it holds.
pub(super) type Cache<K, V> = Mutex<HashMap<K, (V, Instant)>>;

pub(super) fn cached<K: std::hash::Hash + Eq, V: Clone>(cache: &Cache<K, V>, key: &K) -> Option<V> {
    let cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
    cache.get(key).filter(|(_, until)| *until > Instant::now()).map(|(value, _)| value.clone())
}

pub(super) fn remember<K: std::hash::Hash + Eq, V>(cache: &Cache<K, V>, key: K, value: V, life: Duration) {
    let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
    let now = Instant::now();
    if cache.len() >= MAX_CACHED {
        cache.retain(|_, (_, until)| *until > now);
    }
    if cache.len() < MAX_CACHED {
        cache.insert(key, (value, now + life));
    }
}

pub(super) struct Authenticator {
    client: kube::Client,
    tokens: bool,
    life: Duration,
    /// By the token's SHA-256: tokens themselves are not kept.
    cache: Cache<[u8; 32], Option<User>>,
}

impl Authenticator {
    pub(super) fn new(client: kube::Client, config: &Authentication) -> Self {
        let webhook = &config.webhook;
        Self { client, tokens: webhook.enabled, life: webhook.cache_ttl, cache: Cache::default() }
    }

    /// The user whose bearer token the headers carry; `None` for nobody.
    pub(super) async fn authenticate(&self, headers: &HeaderMap) -> Option<User> {
        let token = bearer(headers).filter(|_| self.tokens)?;
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(known) = cached(&self.cache, &key) {
            return known;
        }
        match self.review(token).await {
            Ok(user) => {
                remember(&self.cache, key, user.clone(), self.life);
                user
            }
            Err(error) => {
                tracing::warn!("review a bearer token: {error}");
                None
            }
        }
    }

    async fn review(&self, token: &str) -> kube::Result<Option<User>> {
        let spec = TokenReviewSpec { token: token.into(), ..TokenReviewSpec::default() };
        let review = TokenReview { spec, ..TokenReview::default() };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let status = api.create(&PostParams::default(), &review).await?.status.unwrap_or_default();
        if status.authenticated != Some(true) {
            return Ok(None);
        }
        let user = status.user.unwrap_or_default();
        let mut groups = user.groups.unwrap_or_default();
        if !groups.iter().any(|g| g == AUTHENTICATED) {
            groups.push(AUTHENTICATED.into());
        }
        Ok(Some(User {
            name: user.username.unwrap_or_default(),
            uid: user.uid.unwrap_or_default(),
            groups,
            extra: user.extra.unwrap_or_default(),
        }))
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    Some(token.trim()).filter(|token| scheme.eq_ignore_ascii_case("bearer") && !token.is_empty())
}
