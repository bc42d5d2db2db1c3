//! Why a host did not give what was asked of it, and what to do about an answer.

use std::time::Duration;

use http::header::{LOCATION, RETRY_AFTER};
use http::{HeaderMap, Response, StatusCode, Uri};
use hyper::ext::ReasonPhrase;
use serde::Deserialize;

/// Redirects that are followed, as Go does.
const REDIRECTS: u8 = 10;
/// How often an overloaded host is asked again.
const WAITS: u8 = 3;
/// The longest pause that a host may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Characters of a host's own words that are shown.
const WORDS: usize = 300;

/// A host that did not give it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{host} {kind}")]
pub struct HostFailure {
    /// HOST or HOST:PORT.
    pub host: String,
    pub kind: FailureKind,
}

/// Why. The words go on after the host's name, with the remedy where there is one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FailureKind {
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    #[error("shows a certificate that is not trusted ({0}); name its authority as ca in the registry's hosts.toml")]
    Certificate(String),
    #[error("does not know it{0}; check the name and the tag")]
    NotFound(String),
    #[error("denies access{0}; check the pull secret, and that the repository exists")]
    Denied(String),
    #[error("wants fewer requests{0}; try later, or log in for a higher limit")]
    Limited(String),
    #[error("answers with status {0}{1}")]
    Status(u16, String),
    #[error("sent nothing for {} s", .0.as_secs())]
    Stalled(Duration),
    #[error("broke the connection: {0}")]
    Broken(String),
    /// It lies: about a digest, a length, a kind.
    #[error("gives something else than was asked for: {0}")]
    Wrong(String),
    /// What is configured for it here cannot be used.
    #[error("cannot be asked: {0}")]
    Setup(String),
}

impl FailureKind {
    /// From a status that is final and the host's own words.
    pub fn of_status(status: StatusCode, words: &str) -> Self {
        let words = if words.is_empty() { String::new() } else { format!(" ({words})") };
        match status {
            StatusCode::NOT_FOUND => Self::NotFound(words),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Self::Denied(words),
            StatusCode::TOO_MANY_REQUESTS => Self::Limited(words),
            other => Self::Status(other.as_u16(), words),
        }
    }
}

/// How far a request has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// It was answered with a challenge, and that with what we have.
    pub authenticated: bool,
    pub redirects: u8,
    pub waits: u8,
}

/// What to do about an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Take,
    Authenticate,
    Follow(Uri),
    Wait(Duration),
    Fail,
}

/// Decides about the answer to a request that was sent to `uri`.
pub fn step(status: StatusCode, headers: &HeaderMap, uri: &Uri, progress: Progress) -> Step {
    match status {
        status if status.is_success() => Step::Take,
        StatusCode::UNAUTHORIZED if !progress.authenticated => Step::Authenticate,
        StatusCode::MOVED_PERMANENTLY
        | StatusCode::FOUND
        | StatusCode::SEE_OTHER
        | StatusCode::TEMPORARY_REDIRECT
        | StatusCode::PERMANENT_REDIRECT
            if progress.redirects < REDIRECTS =>
        {
            let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
            location.and_then(|location| resolve(uri, location)).map_or(Step::Fail, Step::Follow)
        }
        StatusCode::REQUEST_TIMEOUT
        | StatusCode::TOO_MANY_REQUESTS
        | StatusCode::INTERNAL_SERVER_ERROR
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT
            if progress.waits < WAITS =>
        {
            let asked = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
            match asked.map(Duration::from_secs) {
                Some(asked) if asked > LONGEST_WAIT => Step::Fail,
                Some(asked) => Step::Wait(asked),
                None => Step::Wait(pause(progress.waits)),
            }
        }
        _ => Step::Fail,
    }
}

/// The pause before the attempt after `failed` failed ones.
pub fn pause(failed: u8) -> Duration {
    Duration::from_millis(250) * 2_u32.pow(u32::from(failed.min(6)))
}

/// Where a `Location` leads from `base`. Source: RFC 9110 section 10.2.2, RFC 3986 section 5.2; without dot segments.
fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next()?;
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let full = if location.contains("://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.starts_with('?') {
        format!("{scheme}://{authority}{}{location}", base.path())
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    let uri: Uri = full.parse().ok()?;
    let usable = matches!(uri.scheme_str(), Some("http" | "https")) && !uri.authority()?.as_str().contains('@');
    usable.then_some(uri)
}

/// Whether what was asked of `one` may also be told to `other`.
pub fn is_same_host(one: &Uri, other: &Uri) -> bool {
    one.scheme() == other.scheme() && one.authority() == other.authority()
}

/// Where in a blob an answer begins: how many of its bytes to drop so that it goes on at `wanted`.
///
/// # Errors
/// Where the answer begins too late, or does not say where.
pub fn bytes_to_drop(status: StatusCode, content_range: Option<&str>, wanted: u64) -> Result<u64, FailureKind> {
    if status != StatusCode::PARTIAL_CONTENT {
        return Ok(wanted);
    }
    let start = content_range
        .and_then(|range| range.trim().strip_prefix("bytes "))
        .and_then(|range| range.split('-').next()?.trim().parse::<u64>().ok());
    start.and_then(|start| wanted.checked_sub(start)).ok_or_else(|| {
        let told = content_range.unwrap_or("nothing").chars().take(100).collect::<String>();
        FailureKind::Wrong(format!("bytes from {wanted} on were asked for, \"{told}\" came"))
    })
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<ErrorEntry>,
}

#[derive(Deserialize)]
struct ErrorEntry {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// A registry's own words in its answer, where it has some. Source: OCI distribution specification, "Error Codes".
pub fn words(body: &[u8]) -> String {
    let Ok(Errors { errors }) = serde_json::from_slice(body) else { return String::new() };
    let one = |entry: ErrorEntry| match (entry.code.as_str(), entry.message.as_str()) {
        ("", message) => message.to_owned(),
        (code, "") => code.to_owned(),
        (code, message) => format!("{code}: {message}"),
    };
    let all: Vec<_> = errors.into_iter().map(one).filter(|text| !text.is_empty()).collect();
    shown(&all.join(", "))
}

/// The words behind the number of an answer's status, where they are its own. Proxies say there what kept them.
pub fn reason<B>(answer: &Response<B>) -> String {
    let reason = answer.extensions().get::<ReasonPhrase>().map(ReasonPhrase::as_bytes).unwrap_or_default();
    let reason = String::from_utf8_lossy(reason);
    let usual = answer.status().canonical_reason().unwrap_or_default();
    if reason.eq_ignore_ascii_case(usual) { String::new() } else { shown(&reason) }
}

fn shown(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(plain).take(WORDS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn uri() -> Uri {
        Uri::from_static("https://a.b:1/v2/x/blobs/y?z=1")
    }

    fn decide(status: u16, header: Option<(http::HeaderName, &'static str)>, progress: Progress) -> Step {
        let mut headers = HeaderMap::new();
        headers.extend(header.map(|(name, value)| (name, HeaderValue::from_static(value))));
        step(StatusCode::from_u16(status).unwrap(), &headers, &uri(), progress)
    }

    #[test]
    fn an_answer_says_what_to_do_next() {
        let start = Progress::default();
        assert_eq!(decide(200, None, start), Step::Take);
        assert_eq!(decide(206, None, start), Step::Take);
        assert_eq!(decide(401, None, start), Step::Authenticate);
        assert_eq!(decide(401, None, Progress { authenticated: true, ..start }), Step::Fail);
        assert_eq!(decide(403, None, start), Step::Fail);
        assert_eq!(decide(404, None, start), Step::Fail);
        assert_eq!(decide(503, None, start), Step::Wait(Duration::from_millis(250)));
        assert_eq!(decide(503, None, Progress { waits: 2, ..start }), Step::Wait(Duration::from_secs(1)));
        assert_eq!(decide(503, None, Progress { waits: 3, ..start }), Step::Fail);
        assert_eq!(decide(429, Some((RETRY_AFTER, "7")), start), Step::Wait(Duration::from_secs(7)));
        assert_eq!(decide(429, Some((RETRY_AFTER, "3600")), start), Step::Fail);
        let follow = Step::Follow(Uri::from_static("http://c.d/e"));
        assert_eq!(decide(307, Some((LOCATION, "http://c.d/e")), start), follow);
        assert_eq!(decide(307, Some((LOCATION, "http://c.d/e")), Progress { redirects: 10, ..start }), Step::Fail);
        assert_eq!(decide(302, None, start), Step::Fail);
    }

    #[test]
    fn locations_are_resolved_against_where_they_came_from() {
        let at = |location| resolve(&uri(), location).map(|uri| uri.to_string());
        assert_eq!(at("/c?d"), Some("https://a.b:1/c?d".to_owned()));
        assert_eq!(at("//c.d/e"), Some("https://c.d/e".to_owned()));
        assert_eq!(at("f#g"), Some("https://a.b:1/v2/x/blobs/f".to_owned()));
        assert_eq!(at("?h"), Some("https://a.b:1/v2/x/blobs/y?h".to_owned()));
        assert_eq!(at("ftp://c/d"), None);
        assert_eq!(at("https://user:secret@c/d"), None);
        assert!(is_same_host(&uri(), &Uri::from_static("https://a.b:1/other")));
        assert!(!is_same_host(&uri(), &Uri::from_static("http://a.b:1/other")));
    }

    #[test]
    fn a_blob_goes_on_where_it_stopped() {
        let drop = |status, range, wanted| bytes_to_drop(StatusCode::from_u16(status).unwrap(), range, wanted);
        assert_eq!(drop(200, None, 0), Ok(0));
        assert_eq!(drop(200, None, 10), Ok(10));
        assert_eq!(drop(206, Some("bytes 10-99/100"), 10), Ok(0));
        assert_eq!(drop(206, Some("bytes 8-99/100"), 10), Ok(2));
        assert!(drop(206, Some("bytes 11-99/100"), 10).is_err());
        assert!(drop(206, None, 10).is_err());
    }

    #[test]
    fn a_registrys_words_are_shown_within_bounds() {
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest\nunknown","detail":{"secret":1}},{"code":"X"}]}"#;
        assert_eq!(words(body), "MANIFEST_UNKNOWN: manifest unknown, X");
        assert_eq!(words(b"<html>"), "");
        let long = format!(r#"{{"errors":[{{"message":"{}"}}]}}"#, "x".repeat(1000));
        assert_eq!(words(long.as_bytes()).len(), WORDS);
        let failure = HostFailure {
            host: "a.b".to_owned(),
            kind: FailureKind::of_status(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
        };
        assert_eq!(failure.to_string(), "a.b does not know it (MANIFEST_UNKNOWN); check the name and the tag");
    }

    #[test]
    fn a_status_line_may_say_why() {
        let mut answer = Response::builder().status(502).body(()).unwrap();
        assert_eq!(reason(&answer), "");
        answer.extensions_mut().insert(ReasonPhrase::from_static(b"Bad Gateway"));
        assert_eq!(reason(&answer), "");
        answer.extensions_mut().insert(ReasonPhrase::from_static(b"the host cannot reach a.b:443"));
        assert_eq!(reason(&answer), "the host cannot reach a.b:443");
    }

    proptest! {
        #[test]
        fn no_answer_breaks_the_decisions(status in 100_u16..1000, header in "[ -~]{0,40}", body in any::<Vec<u8>>()) {
            let mut headers = HeaderMap::new();
            let value = HeaderValue::from_str(&header).unwrap();
            headers.insert(LOCATION, value.clone());
            headers.insert(RETRY_AFTER, value);
            let status = StatusCode::from_u16(status).unwrap();
            let _ = step(status, &headers, &uri(), Progress::default());
            let _ = bytes_to_drop(status, Some(&header), 5);
            let _ = words(&body);
        }
    }
}
