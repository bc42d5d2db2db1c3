//! Exec and attach: the streams of a remote command, and how it ended.
//!
//! Over SPDY each stream names its type in a header; over WebSocket it is the channel of its number.

use crate::spdy::Headers;
use serde_json::{Value, json};

/// The header of a SPDY stream that names its type.
pub const STREAM_TYPE: &str = "streamtype";
/// The header in which client and server agree on a version of the protocol.
pub const PROTOCOL_VERSION: &str = "X-Stream-Protocol-Version";
/// The version whose error stream carries a `Status`; every kubelet and runtime knows it.
pub const V4: &str = "v4.channel.k8s.io";

/// A stream of a remote command. The number is the channel over WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StreamType {
    Stdin = 0,
    Stdout = 1,
    Stderr = 2,
    Error = 3,
    Resize = 4,
}

impl StreamType {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Stdin, "stdin"),
        (Self::Stdout, "stdout"),
        (Self::Stderr, "stderr"),
        (Self::Error, "error"),
        (Self::Resize, "resize"),
    ];

    pub fn channel(self) -> u8 {
        self as u8
    }

    pub fn of_channel(channel: u8) -> Option<Self> {
        Self::ALL.get(usize::from(channel)).map(|(kind, _)| *kind)
    }

    pub fn name(self) -> &'static str {
        Self::ALL[usize::from(self.channel())].1
    }

    pub fn headers(self) -> Headers {
        Headers::of(&[(STREAM_TYPE, self.name())])
    }

    pub fn of_headers(headers: &Headers) -> Option<Self> {
        let name = headers.first(STREAM_TYPE)?;
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(kind, _)| *kind)
    }
}

/// How a remote command ended, as the error stream tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Success,
    Exited(i32),
    Failed(String),
}

impl Outcome {
    /// Reads what a v4 error stream carried until it finished.
    pub fn of_error_stream(bytes: &[u8]) -> Self {
        if bytes.is_empty() {
            return Self::Success;
        }
        let Ok(status) = serde_json::from_slice::<Value>(bytes) else {
            return Self::Failed(String::from_utf8_lossy(bytes).into_owned());
        };
        if status["status"] == "Success" {
            return Self::Success;
        }
        let message = status["message"].as_str().unwrap_or_default().to_owned();
        if status["reason"] != "NonZeroExitCode" {
            return Self::Failed(message);
        }
        let causes = status.pointer("/details/causes").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let code =
            causes.iter().find(|cause| cause["reason"] == "ExitCode").and_then(|cause| cause["message"].as_str());
        code.and_then(|code| code.parse().ok()).map_or(Self::Failed(message), Self::Exited)
    }

    /// The `Status` that the error stream carries from version 4 on.
    pub fn to_status(&self) -> Value {
        match self {
            Self::Success => json!({"metadata": {}, "status": "Success"}),
            Self::Exited(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": self.message(),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Self::Failed(message) => json!({
                "metadata": {}, "status": "Failure", "reason": "InternalError", "message": message, "code": 500,
            }),
        }
    }

    /// What the error stream carries before version 4; empty for success.
    pub fn message(&self) -> String {
        match self {
            Self::Success => String::new(),
            Self::Exited(code) => {
                format!("command terminated with non-zero exit code: command terminated with exit code {code}")
            }
            Self::Failed(message) => message.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_and_channels() {
        for channel in 0..5 {
            let kind = StreamType::of_channel(channel).unwrap();
            assert_eq!(kind.channel(), channel);
            assert_eq!(StreamType::of_headers(&kind.headers()), Some(kind));
        }
        assert_eq!(StreamType::of_channel(5), None);
        assert_eq!(StreamType::of_headers(&Headers::of(&[("streamType", "data")])), None);
    }

    #[test]
    fn outcomes_survive_the_wire() {
        for outcome in [Outcome::Success, Outcome::Exited(3), Outcome::Failed("no such container".into())] {
            assert_eq!(Outcome::of_error_stream(outcome.to_status().to_string().as_bytes()), outcome);
        }
        assert_eq!(Outcome::of_error_stream(b""), Outcome::Success);
        assert_eq!(Outcome::of_error_stream(b"boom"), Outcome::Failed("boom".into()));
    }
}
