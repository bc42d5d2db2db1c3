//! Probes by opening a TCP connection.

use std::time::Duration;

use super::{Outcome, dial_error, host_port};

pub(super) async fn probe(host: &str, port: u16, timeout: Duration) -> Outcome {
    let address = host_port(host, port);
    match tokio::time::timeout(timeout, tokio::net::TcpStream::connect(&address)).await {
        Ok(Ok(stream)) => {
            // A probe leaves no TIME_WAIT behind.
            let _ = stream.set_zero_linger();
            Outcome::Success
        }
        Ok(Err(error)) => Outcome::Failure(format!("dial tcp {address}: {}", dial_error(&error))),
        Err(_) => Outcome::Failure(format!("dial tcp {address}: i/o timeout")),
    }
}
