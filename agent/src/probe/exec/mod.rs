//! One probe, run once: by exec, HTTP, TCP or gRPC. When to probe and what follows is the scheduler's.

mod command;
mod count;
mod grpc;
mod http;
mod tcp;

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerPort, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

pub use command::{CommandError, CommandOutput, Commands};
pub use count::{COUNTS, Counts};
pub use http::{HttpTarget, http_target};

/// How much of an answer becomes part of a message.
const MAX_MESSAGE: usize = 10 * 1024;

/// What a probe found, with the text of the Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// Counts as success; the text is worth an Event (`ProbeWarning`).
    Warning(String),
    Failure(String),
    /// The probe itself could not be done; neither success nor failure.
    Unknown(String),
}

/// Which of a container's probes it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProbeKind {
    Startup,
    Readiness,
    Liveness,
}

impl ProbeKind {
    /// As Events spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

/// Reason and message of the Event for an outcome; `None` for success.
pub fn event(kind: ProbeKind, outcome: &Outcome) -> Option<(&'static str, String)> {
    let kind = kind.as_str();
    match outcome {
        Outcome::Success => None,
        Outcome::Warning(text) => Some(("ProbeWarning", format!("{kind} probe warning: {text}"))),
        Outcome::Failure(text) => Some(("Unhealthy", format!("{kind} probe failed: {text}"))),
        Outcome::Unknown(text) => {
            Some(("Unhealthy", format!("{kind} probe errored and resulted in unknown state: {text}")))
        }
    }
}

/// What a probe needs to know of the container it asks.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The pod's address; `None` while it has none.
    pub address: Option<IpAddr>,
    /// The container's ports, for ports given by name.
    pub ports: &'a [ContainerPort],
    /// The container's id in the runtime, for exec.
    pub container_id: &'a str,
}

/// Runs the probe once. Never longer than its `timeoutSeconds`, save that an exec's end is the runtime's.
pub async fn run(probe: &Probe, target: Target<'_>, commands: &impl Commands) -> Outcome {
    let timeout = Duration::from_secs(u64::try_from(probe.timeout_seconds.unwrap_or(1)).unwrap_or(1).max(1));
    if let Some(exec) = &probe.exec {
        return command::probe(commands, target.container_id, exec.command.clone().unwrap_or_default(), timeout).await;
    }
    let Some(address) = target.address else { return Outcome::Unknown("the pod has no address".into()) };
    if let Some(action) = &probe.http_get {
        return match http_target(action, address, target.ports) {
            Ok(request) => http::probe(&request, timeout).await,
            Err(reason) => Outcome::Unknown(reason),
        };
    }
    if let Some(action) = &probe.tcp_socket {
        let host = action.host.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| address.to_string());
        return match port(&action.port, target.ports) {
            Ok(port) => tcp::probe(&host, port, timeout).await,
            Err(reason) => Outcome::Unknown(reason),
        };
    }
    match &probe.grpc {
        Some(action) => match u16::try_from(action.port) {
            Ok(port) => grpc::probe(address, port, action.service.as_deref().unwrap_or_default(), timeout).await,
            Err(_) => Outcome::Unknown(format!("invalid port number: {}", action.port)),
        },
        None => Outcome::Unknown("missing probe handler".into()),
    }
}

/// A port by number, or by the name that the container gives it.
fn port(port: &IntOrString, ports: &[ContainerPort]) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => match ports.iter().find(|p| p.name.as_deref() == Some(name)) {
            Some(found) => found.container_port,
            None => name.parse().map_err(|_| format!("couldn't find port: {port:?}", port = name))?,
        },
    };
    u16::try_from(number).ok().filter(|n| *n > 0).ok_or_else(|| format!("invalid port number: {number}"))
}

/// `host:port`, with brackets round an IPv6 address.
fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// A refused or lost connection in the words that users of Kubernetes know.
fn dial_error(error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::ConnectionRefused => "connect: connection refused".into(),
        ErrorKind::HostUnreachable => "connect: no route to host".into(),
        ErrorKind::NetworkUnreachable => "connect: network is unreachable".into(),
        ErrorKind::TimedOut => "i/o timeout".into(),
        ErrorKind::ConnectionReset => "connect: connection reset by peer".into(),
        _ => error.to_string(),
    }
}

fn clip(mut text: String) -> String {
    if text.len() > MAX_MESSAGE {
        let end = (0..=MAX_MESSAGE).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests;
