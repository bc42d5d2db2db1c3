//! One host of a registry: a request to it with authorization, redirects and second attempts, and its answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, PROXY_AUTHORIZATION, RANGE, USER_AGENT, WWW_AUTHENTICATE,
};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::sync::{Mutex, OnceCell};
use tokio::time::{sleep, timeout};

use super::auth::{
    Authorization, Credentials, TokenRequest, challenges, password_form, secret, token_answer, token_request,
};
use super::connect::{DialError, Dialer, chain, dial_error};
use super::failure::{FailureKind, HostFailure, Progress, Step, bytes_to_drop, is_same_host, reason, step, words};
use super::hosts::{HostConfig, Scheme};

/// Bytes of an answer that says why, and of a token.
const SMALL: usize = 1 << 20;

/// A request, relative to the API of a host.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub method: Method,
    /// As `/library/busybox/manifests/latest`.
    pub path: String,
    /// For `Accept`; empty for anything.
    pub accept: &'static str,
    /// The first byte that is wanted.
    pub from: u64,
}

/// A host of a registry, for one pull.
pub struct Host {
    pub config: HostConfig,
    dialer: Dialer,
    client: Client<Dialer, Full<Bytes>>,
    credentials: Option<Credentials>,
    /// The repository, for the scope of a token.
    repository: String,
    /// The registry that a mirror stands for, as `ns` of its query.
    stands_for: Option<String>,
    stall: Duration,
    encrypted: OnceCell<bool>,
    authorization: Mutex<Option<Authorization>>,
    unreachable: AtomicBool,
}

/// What a pull knows of a host besides its configuration.
pub struct Context<'a> {
    pub registry: &'a str,
    pub repository: &'a str,
    pub credentials: Option<Credentials>,
    pub stall: Duration,
}

impl Host {
    pub fn new(config: HostConfig, dialer: Dialer, context: Context<'_>) -> Self {
        let own = config.authority == context.registry
            || (context.registry == "docker.io" && config.authority == "registry-1.docker.io");
        let authorization = match &context.credentials {
            Some(Credentials::Token(token)) => {
                secret(format!("Bearer {token}")).map(|header| Authorization { header, expires: None })
            }
            _ => None,
        };
        Self {
            client: Client::builder(TokioExecutor::new())
                .pool_idle_timeout(Duration::from_secs(30))
                .build(dialer.clone()),
            dialer,
            credentials: context.credentials,
            repository: context.repository.to_owned(),
            stands_for: (!own).then(|| context.registry.to_owned()),
            stall: context.stall,
            encrypted: OnceCell::new(),
            authorization: Mutex::new(authorization),
            unreachable: AtomicBool::new(false),
            config,
        }
    }

    /// HOST or HOST:PORT.
    pub fn name(&self) -> &str {
        &self.config.authority
    }

    /// It could not be reached before: others are asked first.
    pub fn is_unreachable(&self) -> bool {
        self.unreachable.load(Ordering::Relaxed)
    }

    pub fn failure(&self, kind: FailureKind) -> HostFailure {
        HostFailure { host: self.name().to_owned(), kind }
    }

    /// Sends, and follows up until there is an answer of success.
    ///
    /// # Errors
    /// Why this host does not give it.
    pub async fn send(&self, wanted: &Wanted) -> Result<Response<Incoming>, HostFailure> {
        let first = self.address(wanted).await?;
        let mut uri = first.clone();
        let mut progress = Progress::default();
        loop {
            let own = is_same_host(&uri, &first);
            let authorization = if own { self.authorization(Instant::now()).await } else { None };
            let request = self.request(wanted, &uri, own, authorization.as_ref())?;
            let answer = self.once(request).await.map_err(|kind| self.failure(kind))?;
            match step(answer.status(), answer.headers(), &uri, progress) {
                Step::Take => return Ok(answer),
                Step::Authenticate if own => {
                    progress.authenticated = true;
                    self.authenticate(&answer, authorization, &uri).await?;
                }
                Step::Follow(next) => {
                    progress.redirects += 1;
                    uri = next;
                }
                Step::Wait(pause) => {
                    progress.waits += 1;
                    sleep(pause).await;
                }
                Step::Authenticate | Step::Fail => return Err(self.final_failure(answer).await),
            }
        }
    }

    async fn address(&self, wanted: &Wanted) -> Result<Uri, HostFailure> {
        let encrypted = match self.config.scheme {
            Scheme::Https => true,
            Scheme::Http => false,
            Scheme::Either => *self.encrypted.get_or_init(|| self.dialer.speaks_tls(self.name())).await,
        };
        let scheme = if encrypted { "https" } else { "http" };
        let query = self.stands_for.as_ref().map(|registry| {
            form_urlencoded::Serializer::for_suffix("?".to_owned(), 1).append_pair("ns", registry).finish()
        });
        let text =
            format!("{scheme}://{}{}{}{}", self.name(), self.config.path, wanted.path, query.unwrap_or_default());
        text.parse().map_err(|_| self.failure(FailureKind::Setup(format!("{text} is no address"))))
    }

    fn request(
        &self,
        wanted: &Wanted,
        uri: &Uri,
        own: bool,
        authorization: Option<&HeaderValue>,
    ) -> Result<Request<Full<Bytes>>, HostFailure> {
        let mut request = Request::builder().method(wanted.method.clone()).uri(uri).body(Full::default());
        if let Ok(request) = &mut request {
            let headers = request.headers_mut();
            headers.insert(USER_AGENT, HeaderValue::from_static(concat!("bosun/", env!("CARGO_PKG_VERSION"))));
            if !wanted.accept.is_empty() {
                headers.insert(ACCEPT, HeaderValue::from_static(wanted.accept));
            }
            let range = (wanted.from > 0).then(|| HeaderValue::try_from(format!("bytes={}-", wanted.from)).ok());
            headers.extend(range.flatten().map(|value| (RANGE, value)));
            if own {
                for (name, value) in &self.config.headers {
                    headers.append(name, value.clone());
                }
                headers.extend(authorization.map(|value| (AUTHORIZATION, value.clone())));
            }
            let proxy = self.dialer.reading_proxy(uri).and_then(|proxy| proxy.credentials.clone());
            headers.extend(proxy.map(|value| (PROXY_AUTHORIZATION, value)));
        }
        request.map_err(|error| self.failure(FailureKind::Setup(error.to_string())))
    }

    async fn once(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, FailureKind> {
        match timeout(self.stall, self.client.request(request)).await {
            Err(_) => Err(FailureKind::Stalled(self.stall)),
            Ok(Ok(answer)) => {
                self.unreachable.store(false, Ordering::Relaxed);
                Ok(answer)
            }
            Ok(Err(error)) => Err(match dial_error(&error) {
                Some(DialError::Certificate(why)) => FailureKind::Certificate(why.clone()),
                Some(why) => {
                    self.unreachable.store(true, Ordering::Relaxed);
                    FailureKind::Unreachable(why.to_string())
                }
                None => FailureKind::Broken(chain(&error)),
            }),
        }
    }

    async fn authorization(&self, now: Instant) -> Option<HeaderValue> {
        let held = self.authorization.lock().await;
        held.as_ref().filter(|held| held.lives(now)).map(|held| held.header.clone())
    }

    /// Answers a challenge, one caller at a time: who waited takes what the first one got.
    async fn authenticate(
        &self,
        answer: &Response<Incoming>,
        used: Option<HeaderValue>,
        uri: &Uri,
    ) -> Result<(), HostFailure> {
        let mut held = self.authorization.lock().await;
        let now = Instant::now();
        if held.as_ref().is_some_and(|held| held.lives(now) && Some(&held.header) != used.as_ref()) {
            return Ok(());
        }
        let headers = answer.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let offered: Vec<_> = headers.flat_map(challenges).collect();
        if let Some(challenge) = offered.iter().find(|challenge| challenge.scheme == "bearer") {
            let encrypted = uri.scheme_str() == Some("https");
            let request = token_request(challenge, self.credentials.as_ref(), &self.repository, encrypted)
                .map_err(|error| self.failure(FailureKind::Setup(error.to_string())))?;
            *held = Some(self.token(request).await?);
            return Ok(());
        }
        let basic = self.credentials.as_ref().and_then(Credentials::basic);
        match (offered.iter().any(|challenge| challenge.scheme == "basic"), basic) {
            (true, Some(header)) => *held = Some(Authorization { header, expires: None }),
            (true, None) => {
                return Err(self.failure(FailureKind::Denied(" (it wants a user and a password)".to_owned())));
            }
            (false, _) => return Err(self.failure(FailureKind::Denied(" (by no known scheme)".to_owned()))),
        }
        Ok(())
    }

    async fn token(&self, request: TokenRequest) -> Result<Authorization, HostFailure> {
        let issuer = request.uri.authority().map(ToString::to_string).unwrap_or_default();
        let failed = |kind: FailureKind| HostFailure { host: issuer.clone(), kind };
        let mut answer = self.once(self.ask_for_token(&request)?).await.map_err(&failed)?;
        let by_form = self.credentials.as_ref().and_then(|credentials| password_form(&request, credentials));
        if let (StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED, Some(form)) = (answer.status(), by_form) {
            answer = self.once(self.ask_for_token(&form)?).await.map_err(&failed)?;
        }
        let status = answer.status();
        let bytes = self.small_body(answer.into_body(), SMALL).await.map_err(&failed)?;
        if !status.is_success() {
            let words = self.without_secrets(words(&bytes));
            // An issuer that knows us not answers in many ways, but it is always our credentials.
            let denied = status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS;
            let status = if denied { StatusCode::UNAUTHORIZED } else { status };
            return Err(failed(FailureKind::of_status(status, &words)));
        }
        token_answer(&bytes, Instant::now()).map_err(|error| self.failure(FailureKind::Setup(error.to_string())))
    }

    fn ask_for_token(&self, wanted: &TokenRequest) -> Result<Request<Full<Bytes>>, HostFailure> {
        let method = if wanted.form.is_some() { Method::POST } else { Method::GET };
        let body = Full::new(Bytes::from(wanted.form.clone().unwrap_or_default()));
        let mut request = Request::builder().method(method).uri(&wanted.uri).header(USER_AGENT, "bosun");
        if wanted.form.is_some() {
            request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        if let Some(authorization) = &wanted.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        if let Some(credentials) = self.dialer.reading_proxy(&wanted.uri).and_then(|proxy| proxy.credentials.as_ref()) {
            request = request.header(PROXY_AUTHORIZATION, credentials);
        }
        request.body(body).map_err(|error| self.failure(FailureKind::Setup(error.to_string())))
    }

    async fn final_failure(&self, answer: Response<Incoming>) -> HostFailure {
        let (status, reason) = (answer.status(), reason(&answer));
        let body = self.small_body(answer.into_body(), SMALL).await.unwrap_or_default();
        let words = Some(words(&body)).filter(|words| !words.is_empty()).unwrap_or(reason);
        self.failure(FailureKind::of_status(status, &self.without_secrets(words)))
    }

    fn without_secrets(&self, words: String) -> String {
        match &self.credentials {
            Some(credentials) if credentials.appear_in(&words) => String::new(),
            _ => words,
        }
    }

    /// A whole body of at most `limit` bytes.
    ///
    /// # Errors
    /// Where it breaks, stalls or is longer.
    pub async fn small_body(&self, body: Incoming, limit: usize) -> Result<Bytes, FailureKind> {
        let mut body = body;
        let mut whole = BytesMut::new();
        while let Some(part) = next_part(&mut body, self.stall).await? {
            if whole.len() + part.len() > limit {
                return Err(FailureKind::Wrong(format!("more than {limit} bytes")));
            }
            whole.extend_from_slice(&part);
        }
        Ok(whole.freeze())
    }

    /// The bytes of a blob of `size` bytes from `from` on.
    ///
    /// # Errors
    /// Why this host does not give them.
    pub async fn blob(self: &Arc<Self>, path: String, from: u64, size: u64) -> Result<Blob, HostFailure> {
        let answer = self.send(&Wanted { method: Method::GET, path, accept: "", from }).await?;
        let range = answer.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let drop = bytes_to_drop(answer.status(), range, from).map_err(|kind| self.failure(kind))?;
        Ok(Blob { host: self.clone(), body: answer.into_body(), drop, left: size.saturating_sub(from) })
    }
}

/// A blob on its way.
pub struct Blob {
    host: Arc<Host>,
    body: Incoming,
    /// Bytes that we have already.
    drop: u64,
    /// Bytes that must still come.
    left: u64,
}

impl Blob {
    /// The next bytes; none at the end.
    ///
    /// # Errors
    /// Where the connection breaks or stalls, or more comes than belongs to the blob.
    pub async fn next(&mut self) -> Result<Option<Bytes>, HostFailure> {
        loop {
            let part = next_part(&mut self.body, self.host.stall).await.map_err(|kind| self.host.failure(kind))?;
            let Some(mut part) = part else {
                let short = FailureKind::Broken(format!("{} bytes before the end", self.left));
                return if self.left == 0 { Ok(None) } else { Err(self.host.failure(short)) };
            };
            let drop = self.drop.min(part.len() as u64);
            self.drop -= drop;
            // Not more than the part has.
            let part = part.split_off(usize::try_from(drop).unwrap_or(part.len()));
            if part.is_empty() {
                continue;
            }
            let Some(left) = self.left.checked_sub(part.len() as u64) else {
                return Err(self.host.failure(FailureKind::Wrong("more bytes than the manifest says".to_owned())));
            };
            self.left = left;
            return Ok(Some(part));
        }
    }
}

async fn next_part(body: &mut Incoming, stall: Duration) -> Result<Option<Bytes>, FailureKind> {
    loop {
        match timeout(stall, body.frame()).await {
            Err(_) => return Err(FailureKind::Stalled(stall)),
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => return Err(FailureKind::Broken(chain(&error))),
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}
