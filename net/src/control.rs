//! The daemon's socket: one line of JSON asks, one line of JSON answers, and the connection ends.
//!
//! The CNI plugin `policy` asks that a pod's rules be in force before its first packet; `bosun net peers`, `routes` and
//! `trace` ask for what they print. Only root can reach the socket (mode 0600).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// The default path.
pub const SOCKET: &str = "/run/bosun/net.sock";

/// The longest request, in bytes.
const REQUEST: u64 = 64 << 10;
/// How long a client may take to say its request.
const PATIENCE: Duration = Duration::from_secs(10);

/// What may be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Request {
    /// A pod's interface stands: answer when its policies are in force.
    Attach { namespace: String, pod: String, uid: String, container: String, link: String, addresses: Vec<IpAddr> },
    /// A pod's interface is gone.
    Detach { container: String, link: String },
    /// The BGP sessions.
    Peers,
    /// The routes to other nodes.
    Routes,
    /// What becomes of a packet from one pod (`NAMESPACE/POD`) to another or a Service (`NAMESPACE/NAME:PORT`).
    Trace { from: String, to: String },
    /// On which nodes the ends of that packet are, as [`Ends`].
    Ends { from: String, to: String },
    /// How many packets were dropped on this node since its rules stand, by whose they were.
    Drops,
}

/// On which nodes a traced packet begins and may end; those alone can probe and count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ends {
    pub source: String,
    pub destinations: BTreeSet<String>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    Ok(Value),
    /// One line for the user.
    Error(String),
}

/// A part that answers some of the requests; each takes what is its own.
pub trait Answers: Send + Sync {
    fn answer<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Option<Answer>>;

    /// The daemon ends in order: says so to whom that matters.
    fn end(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// Serves until dropped. A socket that a dead daemon left is replaced.
///
/// # Errors
/// Where the socket cannot be made.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    // Bound beside and renamed, so that at no time a socket with other rights has the name.
    let fresh = path.with_extension(format!("{}.new", std::process::id()));
    let _ = fs::remove_file(&fresh);
    let listener = UnixListener::bind(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
    fs::rename(&fresh, path)?;
    Ok(listener)
}

/// Answers at the socket for ever.
pub async fn serve(listener: UnixListener, parts: Arc<Vec<Arc<dyn Answers>>>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(one(stream, Arc::clone(&parts)))),
            Err(error) => {
                tracing::warn!("cannot accept at the control socket: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn one(stream: UnixStream, parts: Arc<Vec<Arc<dyn Answers>>>) {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut read = BufReader::new(read.take(REQUEST));
    let Ok(Ok(_)) = tokio::time::timeout(PATIENCE, read.read_line(&mut line)).await else { return };
    let answer = match serde_json::from_str::<Request>(&line) {
        Ok(request) => ask(&request, &parts).await,
        Err(error) => Answer::Error(format!("cannot read the request: {error}")),
    };
    let Ok(mut text) = serde_json::to_vec(&answer) else { return };
    text.push(b'\n');
    // A client that has gone does not want it.
    let _ = write.write_all(&text).await;
}

async fn ask(request: &Request, parts: &[Arc<dyn Answers>]) -> Answer {
    for part in parts {
        if let Some(answer) = part.answer(request).await {
            return answer;
        }
    }
    Answer::Error("the net daemon does not do this".into())
}

/// Why the daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum Unasked {
    #[error("no net daemon listens at {0}: its log says why it does not run")]
    Absent(PathBuf),
    #[error("the net daemon at {0} did not answer within {1:?}: its log may say what it is at")]
    Silent(PathBuf, Duration),
    #[error("cannot ask the net daemon at {0}: {1}")]
    Failed(PathBuf, io::Error),
}

/// Asks the daemon at `path`, as the command does.
///
/// # Errors
/// Where no daemon listens there, or it does not answer in time.
pub fn request(path: &Path, request: &Request, timeout: Duration) -> Result<Answer, Unasked> {
    exchange(path, request, timeout).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Unasked::Absent(path.to_owned()),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Unasked::Silent(path.to_owned(), timeout),
        _ => Unasked::Failed(path.to_owned(), error),
    })
}

fn exchange(path: &Path, request: &Request, timeout: Duration) -> io::Result<Answer> {
    use std::io::{BufRead, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(path)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let mut text = serde_json::to_vec(request)?;
    text.push(b'\n');
    stream.write_all(&text)?;
    let mut line = String::new();
    std::io::BufReader::new(stream).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct Peers;

    impl Answers for Peers {
        fn answer<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Option<Answer>> {
            Box::pin(async move { (*request == Request::Peers).then(|| Answer::Ok(json!(["a"]))) })
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_request_goes_to_the_part_whose_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/net.sock");
        for _dead in 0..2 {
            let listener = listen(&path).unwrap();
            let serving = tokio::spawn(serve(listener, Arc::new(vec![Arc::new(Peers)])));
            let asked = |request| {
                let path = path.clone();
                tokio::task::spawn_blocking(move || super::request(&path, &request, Duration::from_secs(5)).unwrap())
            };
            assert_eq!(asked(Request::Peers).await.unwrap(), Answer::Ok(json!(["a"])));
            let refused = Answer::Error("the net daemon does not do this".into());
            assert_eq!(asked(Request::Routes).await.unwrap(), refused);
            serving.abort();
        }
        let ask = |path: &Path| super::request(path, &Request::Peers, Duration::from_millis(50)).unwrap_err();
        assert!(matches!(ask(&folder.path().join("none")), Unasked::Absent(_)));
        let _silent = std::os::unix::net::UnixListener::bind(folder.path().join("silent")).unwrap();
        assert!(matches!(ask(&folder.path().join("silent")), Unasked::Silent(..)));
    }
}
