//! Which proxy a host is reached through, from the environment. Source: golang.org/x/net/http/httpproxy, whose rules
//! containerd follows.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Uri};
use ipnetwork::IpNetwork;

/// The environment's proxies.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    exceptions: Vec<Exception>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Proxy {
    /// It wants TLS itself.
    pub tls: bool,
    pub host: String,
    pub port: u16,
    /// For `Proxy-Authorization`.
    pub credentials: Option<HeaderValue>,
}

#[derive(Debug, Clone, PartialEq)]
enum Exception {
    All,
    Network(IpNetwork),
    Address(IpAddr, Option<u16>),
    /// `.example.org`, and with `itself` also `example.org`.
    Domain {
        suffix: String,
        itself: bool,
        port: Option<u16>,
    },
}

/// A value of the environment is no address of a proxy. It is not shown: it may hold credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no address of a proxy: http://HOST:PORT or https://HOST:PORT")]
pub struct ProxyError(&'static str);

impl Proxies {
    /// # Errors
    /// Where a variable is set and cannot be understood.
    pub fn from_env() -> Result<Self, ProxyError> {
        Self::from(|name| std::env::var(name).ok())
    }

    /// From any source of variables; the upper-case names win.
    ///
    /// # Errors
    /// As [`Proxies::from_env`].
    pub fn from(variable: impl Fn(&str) -> Option<String>) -> Result<Self, ProxyError> {
        let value = |name: &str| {
            let own = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
            own(name).or_else(|| own(&name.to_ascii_lowercase()))
        };
        let proxy = |name: &'static str| value(name).map(|text| parse(&text).ok_or(ProxyError(name))).transpose();
        let exceptions = value("NO_PROXY").unwrap_or_default();
        Ok(Self {
            http: proxy("HTTP_PROXY")?,
            https: proxy("HTTPS_PROXY")?,
            exceptions: exceptions.split(',').filter_map(|text| exception(text.trim())).collect(),
        })
    }

    /// The proxy for a connection to `host`, a name or an address, where one is to be used.
    pub fn of(&self, tls: bool, host: &str, port: u16) -> Option<&Proxy> {
        let proxy = if tls { self.https.as_ref() } else { self.http.as_ref() }?;
        let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
        let address: Option<IpAddr> = host.parse().ok();
        let local = host == "localhost" || address.is_some_and(|address| address.is_loopback());
        let excepted = self.exceptions.iter().any(|exception| exception.is_for(&host, address, port));
        (!local && !excepted).then_some(proxy)
    }
}

impl Exception {
    fn is_for(&self, host: &str, address: Option<IpAddr>, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Network(network) => address.is_some_and(|address| network.contains(address)),
            Self::Address(own, at) => address == Some(*own) && at.is_none_or(|at| at == port),
            Self::Domain { suffix, itself, port: at } => {
                let matches = host.ends_with(suffix.as_str()) || (*itself && host == &suffix[1..]);
                matches && at.is_none_or(|at| at == port)
            }
        }
    }
}

fn exception(text: &str) -> Option<Exception> {
    if text == "*" {
        return Some(Exception::All);
    }
    if text.contains('/') {
        return text.parse().ok().map(Exception::Network);
    }
    if let Ok(address) = text.parse() {
        return Some(Exception::Address(address, None));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(port.parse().ok()?)),
        None => (text, None),
    };
    if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse() {
        return Some(Exception::Address(address, port));
    }
    let host = host.trim_start_matches('*').to_ascii_lowercase();
    match host.strip_prefix('.') {
        _ if host.is_empty() => None,
        Some(_) => Some(Exception::Domain { suffix: host, itself: false, port }),
        None => Some(Exception::Domain { suffix: format!(".{host}"), itself: true, port }),
    }
}

fn parse(text: &str) -> Option<Proxy> {
    let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let uri: Uri = full.parse().ok()?;
    let tls = match uri.scheme_str()? {
        "http" => false,
        "https" => true,
        _ => return None,
    };
    let authority = uri.authority()?;
    let credentials = match authority.as_str().rsplit_once('@') {
        Some((user, _)) => Some(basic(user)?),
        None => None,
    };
    let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty()).then(|| Proxy { tls, host: host.to_owned(), port, credentials })
}

fn basic(user: &str) -> Option<HeaderValue> {
    let (name, password) = user.split_once(':').unwrap_or((user, ""));
    let mut plain = decode_percent(name)?;
    plain.push(b':');
    plain.extend(decode_percent(password)?);
    let mut value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(plain))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn decode_percent(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut plain = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'%' => {
                let digit = |byte: u8| (byte as char).to_digit(16);
                let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
                u8::try_from(high * 16 + low).ok()?
            }
            other => other,
        });
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn proxies(variables: &[(&str, &str)]) -> Result<Proxies, ProxyError> {
        Proxies::from(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn each_scheme_has_its_proxy() {
        let both = proxies(&[("HTTPS_PROXY", "http://us%40er:p%3Ass@proxy:3128"), ("http_proxy", "https://[fd00::1]")])
            .unwrap();
        let https = both.of(true, "a.b", 443).unwrap();
        assert_eq!((https.tls, https.host.as_str(), https.port), (false, "proxy", 3128));
        assert_eq!(https.credentials.as_ref().unwrap(), &format!("Basic {}", STANDARD.encode("us@er:p:ss")));
        let http = both.of(false, "a.b", 80).unwrap();
        assert_eq!((http.tls, http.host.as_str(), http.port, &http.credentials), (true, "fd00::1", 443, &None));
        assert_eq!(proxies(&[]).unwrap().of(true, "a.b", 443), None);
        assert_eq!(proxies(&[("HTTP_PROXY", "proxy:1")]).unwrap().of(true, "a.b", 443), None);
        for wrong in ["socks5://p:1", "http://", "http://a b", "http://%zz@p"] {
            let error = proxies(&[("HTTPS_PROXY", wrong)]).unwrap_err();
            assert!(!error.to_string().contains("zz"), "{error}");
        }
    }

    #[test]
    fn exceptions_and_this_machine_are_reached_directly() {
        let list = "10.0.0.0/8, 192.168.1.1 ,one.test,.two.test,*.three.test,four.test:5000,[fd00::2]:80,,bad/99";
        let some = proxies(&[("HTTPS_PROXY", "proxy:1"), ("NO_PROXY", list)]).unwrap();
        let direct = |host: &str, port| some.of(true, host, port).is_none();
        for host in [
            "10.1.2.3",
            "192.168.1.1",
            "one.test",
            "ONE.test.",
            "x.one.test",
            "x.two.test",
            "x.three.test",
            "localhost",
            "127.0.0.9",
            "[::1]",
        ] {
            assert!(direct(host, 443), "{host}");
        }
        for host in ["11.0.0.1", "192.168.1.2", "notone.test", "two.test", "three.test", "four.test", "fd00::2"] {
            assert!(!direct(host, 443), "{host}");
        }
        assert!(direct("four.test", 5000) && direct("[fd00::2]", 80));
        let none = proxies(&[("HTTPS_PROXY", "proxy:1"), ("no_proxy", "*")]).unwrap();
        assert_eq!(none.of(true, "a.b", 443), None);
    }

    proptest! {
        #[test]
        fn no_value_breaks_it(proxy in any::<String>(), exceptions in any::<String>(), host in any::<String>()) {
            if let Ok(some) = proxies(&[("HTTPS_PROXY", &proxy), ("NO_PROXY", &exceptions)]) {
                let _ = some.of(true, &host, 443);
            }
        }
    }
}
