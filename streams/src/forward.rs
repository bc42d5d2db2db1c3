//! Port-forward: for each connection to a port, one stream for data and one for an error message, paired by a request id.

use crate::spdy::Headers;

/// The value of `X-Stream-Protocol-Version` for port-forward over SPDY.
pub const PROTOCOL: &str = "portforward.k8s.io";
/// Before a WebSocket subprotocol whose binary messages are a SPDY connection's bytes (KEP-4006).
pub const TUNNEL_PREFIX: &str = "SPDY/3.1+";

/// What a stream's headers say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardStream {
    pub port: u16,
    /// The same for both streams of a connection.
    pub request_id: String,
    /// The error stream of its pair; the data stream otherwise.
    pub error: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    #[error("{name:?} header is required")]
    Missing { name: &'static str },
    #[error("unable to parse {0:?} as a port")]
    Port(String),
    #[error("invalid stream type {0:?}")]
    Type(String),
}

impl ForwardStream {
    /// # Errors
    /// Names the header that is missing or wrong, for the stream's reset.
    pub fn of_headers(headers: &Headers) -> Result<Self, ForwardError> {
        let header = |name| headers.first(name).filter(|v| !v.is_empty()).ok_or(ForwardError::Missing { name });
        let port = header("port")?;
        let port = port.parse().ok().filter(|p| *p > 0).ok_or_else(|| ForwardError::Port(port.to_owned()))?;
        let error = match header("streamType")? {
            "error" => true,
            "data" => false,
            other => return Err(ForwardError::Type(other.to_owned())),
        };
        Ok(Self { port, request_id: headers.first("requestID").unwrap_or_default().to_owned(), error })
    }

    pub fn headers(&self) -> Headers {
        let kind = if self.error { "error" } else { "data" };
        Headers::of(&[("port", &self.port.to_string()), ("requestID", &self.request_id), ("streamType", kind)])
    }
}

/// The SPDY protocol inside the first tunnel that a client offers, without its prefix; `offered` are the values of its
/// `Sec-WebSocket-Protocol` headers.
pub fn tunneled<'a>(offered: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let mut wanted = offered.into_iter().flat_map(|value| value.split(',')).map(str::trim);
    wanted.find_map(|name| name.strip_prefix(TUNNEL_PREFIX).filter(|inner| inner.ends_with(".k8s.io")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_both_ways() {
        let stream = ForwardStream { port: 8080, request_id: "7".into(), error: true };
        assert_eq!(ForwardStream::of_headers(&stream.headers()), Ok(stream));
        let bad = Headers::of(&[("port", "0"), ("streamType", "data")]);
        assert_eq!(ForwardStream::of_headers(&bad), Err(ForwardError::Port("0".into())));
        assert_eq!(ForwardStream::of_headers(&Headers::default()), Err(ForwardError::Missing { name: "port" }));
    }

    #[test]
    fn finds_the_tunnel() {
        assert_eq!(tunneled(["v4.channel.k8s.io, SPDY/3.1+portforward.k8s.io"]), Some(PROTOCOL));
        assert_eq!(tunneled(["portforward.k8s.io"]), None);
    }
}
