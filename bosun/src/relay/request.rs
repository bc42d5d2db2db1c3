//! What a request to the relay asks for: read from its head, decided without any I/O.
//! Source: RFC 9112, section 3.2 (forms of the target); containerd docs/hosts.md (the `ns` query).

use super::{LOOPBACK, SECRET_HEADER, Secret};

/// The head of an HTTP/1 request.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    pub method: String,
    pub target: String,
    /// In their order, names as they came.
    pub headers: Vec<(String, String)>,
}

/// What to do with it.
#[derive(Debug, PartialEq, Eq)]
pub enum Route {
    /// Join the client to `authority` and say nothing.
    Tunnel { authority: String },
    /// Send the request on to `authority`, with this head.
    Forward { authority: String, head: String },
    /// Answer with this status.
    Refuse(&'static str),
}

impl Head {
    /// `text` is all up to the empty line. Control characters, which another reader may take for the end of a line, and
    /// names with white space, which one may take for others, are refused: what is sent on means the same to all.
    pub fn parse(text: &str) -> Option<Self> {
        let is_control = |c: char| c.is_control() && c != '\t';
        let mut lines = text.split("\r\n").take_while(|line| !line.is_empty());
        if lines.clone().any(|line| line.contains(is_control)) {
            return None;
        }
        let mut words = lines.next()?.split(' ');
        let (method, target, version) = (words.next()?, words.next()?, words.next()?);
        if words.next().is_some() || !version.starts_with("HTTP/1.") {
            return None;
        }
        let mut headers = Vec::new();
        for line in lines {
            let (name, value) = line.split_once(':').filter(|(name, _)| is_name(name))?;
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        Some(Self { method: method.to_owned(), target: target.to_owned(), headers })
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Decides where the request goes.
    pub fn route(&self, secret: &Secret) -> Route {
        if !self.knows(secret) {
            return Route::Refuse("407 Proxy Authentication Required");
        }
        if self.method == "CONNECT" {
            return Route::Tunnel { authority: reachable(&self.target, "443") };
        }
        if let Some(rest) = self.target.strip_prefix("http://") {
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            return self.forward(authority, &format!("/{path}"));
        }
        match namespace(&self.target) {
            // containerd asks a mirror for every registry; for others than loopback it goes on to the registry.
            Some((registry, path)) if is_loopback(&registry) => self.forward(&registry, &path),
            _ => Route::Refuse("404 Not Found"),
        }
    }

    fn knows(&self, secret: &Secret) -> bool {
        let basic = self.header("proxy-authorization").and_then(|value| value.strip_prefix("Basic "));
        let wanted = format!("bosun:{}", secret.as_str());
        use base64::Engine;
        let wanted = base64::engine::general_purpose::STANDARD.encode(wanted);
        basic == Some(&wanted) || self.header(SECRET_HEADER) == Some(secret.as_str())
    }

    fn forward(&self, authority: &str, path: &str) -> Route {
        let mut head = format!("{} {path} HTTP/1.1\r\nHost: {authority}\r\n", self.method);
        let ours = ["host", "proxy-authorization", "proxy-connection", "connection", SECRET_HEADER];
        for (name, value) in &self.headers {
            if !ours.contains(&name.to_ascii_lowercase().as_str()) {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        // One request a connection: the next one may go elsewhere.
        head.push_str("Connection: close\r\n\r\n");
        Route::Forward { authority: reachable(authority, "80"), head }
    }
}

/// A header's: RFC 9110, section 5.1.
fn is_name(text: &str) -> bool {
    let marks = "!#$%&'*+-.^_`|~";
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || marks.contains(c))
}

/// The registry that the query's `ns` names, and the target without it.
fn namespace(target: &str) -> Option<(String, String)> {
    let (path, query) = target.split_once('?')?;
    let is_namespace = |pair: &&str| pair.starts_with("ns=");
    let registry = query.split('&').find(is_namespace)?.strip_prefix("ns=")?.replace("%3A", ":").replace("%3a", ":");
    let rest: Vec<&str> = query.split('&').filter(|pair| !is_namespace(pair)).collect();
    let path = if rest.is_empty() { path.to_owned() } else { format!("{path}?{}", rest.join("&")) };
    Some((registry, path))
}

fn split(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        // Not the colons of a bare or bracketed IPv6 address.
        Some((host, port))
            if port.chars().all(|c| c.is_ascii_digit()) && (!host.contains(':') || host.ends_with(']')) =>
        {
            (host, Some(port))
        }
        _ => (authority, None),
    }
}

fn is_loopback(authority: &str) -> bool {
    let host = split(authority).0.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// As an address to connect to: with a port, and with the host's loopback by its address.
fn reachable(authority: &str, default_port: &str) -> String {
    let (host, port) = split(authority);
    let host = if host == LOOPBACK || host == "localhost" { "127.0.0.1" } else { host };
    format!("{host}:{}", port.unwrap_or(default_port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_of_every_form() {
        let cases = [
            ("registry.k8s.io", "registry.k8s.io:443"),
            ("r.example:5000", "r.example:5000"),
            ("[::1]:5000", "[::1]:5000"),
            ("[fd00::1]", "[fd00::1]:443"),
            ("loopback.bosun.internal:5000", "127.0.0.1:5000"),
        ];
        for (authority, wanted) in cases {
            assert_eq!(reachable(authority, "443"), wanted);
        }
        assert!(is_loopback("[::1]:5000") && is_loopback("127.1.2.3") && !is_loopback("docker.io"));
    }

    #[test]
    fn malformed_heads_are_refused() {
        let lines = ["", "GET /", "GET / HTTP/2", "GET /\nX: HTTP/1.1", "GET /\r HTTP/1.1"];
        let headers = ["no colon", "a: b\nx: y", "a: b\rx: y", "a\0: b", ": b", "x-bosun-relay : s", " folded: b"];
        let heads = lines.map(|line| format!("{line}\r\n\r\n")).into_iter();
        for text in heads.chain(headers.map(|header| format!("GET / HTTP/1.1\r\n{header}\r\n\r\n"))) {
            assert_eq!(Head::parse(&text), None, "{text:?}");
        }
        assert!(Head::parse("GET / HTTP/1.1\r\nA-b: c\td\r\n\r\n").is_some());
    }
}
