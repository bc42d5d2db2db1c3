//! Which headers go on to a backend, and which upgrade a request asks for.

use http::header::{CONNECTION, HeaderMap, HeaderName, UPGRADE};

/// Headers about one connection (RFC 9110, 7.6.1), and those by which the client proved himself to us.
const NOT_FORWARDED: [&str; 9] = [
    "authorization",
    "connection",
    "host",
    "keep-alive",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What an upgrade is made of.
const UPGRADING: [&str; 6] = [
    "sec-websocket-key",
    "sec-websocket-version",
    "sec-websocket-protocol",
    "sec-websocket-extensions",
    "x-stream-protocol-version",
    "user-agent",
];

/// The protocol that a request wants to change to.
pub fn upgrade(headers: &HeaderMap) -> Option<&str> {
    let connection = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let asks = connection.flat_map(|value| value.split(',')).any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
    headers.get(UPGRADE)?.to_str().ok().filter(|_| asks)
}

pub fn is_websocket(headers: &HeaderMap) -> bool {
    upgrade(headers).is_some_and(|protocol| protocol.eq_ignore_ascii_case("websocket"))
}

/// The values of a header that are text.
pub fn values<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok())
}

/// The headers with which a request for an upgrade is repeated towards a kubelet.
pub fn for_upgrade(headers: &HeaderMap) -> HeaderMap {
    let mut kept = pick(headers, |name| UPGRADING.contains(&name));
    kept.insert(CONNECTION, http::HeaderValue::from_static("Upgrade"));
    if let Some(protocol) = headers.get(UPGRADE) {
        kept.insert(UPGRADE, protocol.clone());
    }
    kept
}

/// The headers of a plain request or answer that is handed on.
pub fn forwarded(headers: &HeaderMap) -> HeaderMap {
    pick(headers, |name| !NOT_FORWARDED.contains(&name) && !name.starts_with("impersonate-"))
}

fn pick(headers: &HeaderMap, keep: impl Fn(&str) -> bool) -> HeaderMap {
    let kept = headers.iter().filter(|(name, _): &(&HeaderName, _)| keep(name.as_str()));
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn an_upgrade_needs_both_headers() {
        assert_eq!(
            upgrade(&headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "SPDY/3.1")])),
            Some("SPDY/3.1")
        );
        assert_eq!(upgrade(&headers(&[("upgrade", "SPDY/3.1")])), None);
    }

    #[test]
    fn credentials_stay_here() {
        let asked = headers(&[
            ("authorization", "Bearer x"),
            ("impersonate-user", "y"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
            ("upgrade", "SPDY/3.1"),
            ("accept", "*/*"),
        ]);
        let names = |headers: HeaderMap| -> Vec<String> {
            let mut names: Vec<_> = headers.keys().map(|name| name.as_str().to_owned()).collect();
            names.sort();
            names
        };
        assert_eq!(names(forwarded(&asked)), ["accept", "x-stream-protocol-version"]);
        assert_eq!(names(for_upgrade(&asked)), ["connection", "upgrade", "x-stream-protocol-version"]);
    }
}
