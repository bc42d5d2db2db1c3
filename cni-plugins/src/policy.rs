//! `policy`: chained after the plugin that made the pod's interface, it lets the pod start when the net daemon has its
//! NetworkPolicies in force.

use std::io::{self, BufRead, BufReader, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use api::cni::{Error, Success, code};
use kernel::netlink::{Kernel, Network};
use kernel::netns::Netns;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::skel::{Call, Plugin};

pub struct Policy;

/// The plugin's own keys.
#[derive(Deserialize)]
struct Config {
    /// Where the net daemon listens.
    #[serde(default = "socket")]
    socket: PathBuf,
}

fn socket() -> PathBuf {
    "/run/bosun/net.sock".into()
}

/// How long ADD waits for a daemon that restarts, or for one that waits for the API.
const ADD: Duration = Duration::from_secs(15);
/// How long the others do.
const SHORT: Duration = Duration::from_secs(2);
/// For how long after the daemon's last sign of life STATUS takes it to come back: a supervisor that has seen it die often
/// waits for 10 s each time.
const GRACE: Duration = Duration::from_secs(25);

impl Plugin for Policy {
    fn add(&self, call: &Call) -> Result<Success, Error> {
        let previous = call.previous()?;
        attach(call, &previous)?;
        Ok(previous)
    }

    fn check(&self, call: &Call) -> Result<(), Error> {
        attach(call, &call.previous()?)
    }

    /// Best effort: the daemon finds out by itself which links are gone.
    fn del(&self, call: &Call) -> Result<(), Error> {
        let Ok(config) = call.own::<Config>() else { return Ok(()) };
        // Without the namespace the link is gone already; the daemon then goes by the container.
        let link = link(call).ok().flatten().unwrap_or_default();
        let request = json!({"ask": "detach", "container": call.container_id, "link": link});
        let _ = ask(&config.socket, &request, SHORT);
        Ok(())
    }

    /// To say that the network is not ready makes the node NotReady, and takes its pods, whose traffic goes on, out of all
    /// Services. So a daemon that restarts has time to come back, as ADD waits for it, too; one that ends again and again
    /// before its rules stand is as one that is gone.
    fn status(&self, call: &Call) -> Result<(), Error> {
        let config: Config = call.own()?;
        let until = Instant::now() + SHORT;
        loop {
            let age = age(&config.socket);
            if age.is_some_and(|age| age <= GRACE) {
                return Ok(());
            }
            let reached = UnixStream::connect(&config.socket);
            // It has just begun.
            if reached.is_ok() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
            let msg =
                format!("the net daemon at {} {}: its log says why", config.socket.display(), fault(&reached, age));
            return Err(Error::new(code::PLUGIN_NOT_AVAILABLE, msg));
        }
    }
}

/// How long ago the net daemon last kept its rules, by the file that it touches then; `None` before it ever did.
fn age(socket: &Path) -> Option<Duration> {
    let beat = std::fs::metadata(socket.with_extension("").join("alive")).and_then(|file| file.modified()).ok()?;
    // A clock that was set back meanwhile is no life.
    Some(beat.elapsed().unwrap_or_else(|ahead| ahead.duration()))
}

fn fault(reached: &io::Result<UnixStream>, age: Option<Duration>) -> String {
    let age = age.map_or_else(String::new, |age| format!(" for {} s", age.as_secs()));
    match reached {
        Ok(_) => format!("runs, but has not kept the rules of policies{age}"),
        Err(error) if is_away(error) => format!("has not run{age}"),
        Err(error) => format!("cannot be reached ({error}), and has not kept the rules of policies{age}"),
    }
}

fn attach(call: &Call, previous: &Success) -> Result<(), Error> {
    let config: Config = call.own()?;
    let argument = |key: &str| call.args.get(key).unwrap_or_default();
    let (namespace, pod) = (argument("K8S_POD_NAMESPACE"), argument("K8S_POD_NAME"));
    if namespace.is_empty() || pod.is_empty() {
        let msg = "CNI_ARGS has no K8S_POD_NAMESPACE and K8S_POD_NAME: policies are for the pods of a cluster";
        return Err(Error::new(code::INVALID_ENVIRONMENT, msg));
    }
    let link = link(call)?.ok_or_else(|| {
        let msg = format!("{} is no veth: policies are kept for the plugins bridge, ptp and routed", call.ifname);
        Error::config(msg)
    })?;
    let request = json!({
        "ask": "attach", "namespace": namespace, "pod": pod, "uid": argument("K8S_POD_UID"),
        "container": call.container_id, "link": link, "addresses": addresses(call, previous),
    });
    let not_yet = |why: String| {
        Error::new(code::TRY_AGAIN_LATER, format!("the policies of {namespace}/{pod} are not in force: {why}"))
    };
    match ask(&config.socket, &request, ADD) {
        Ok(answer) => match answer.get("error").and_then(Value::as_str) {
            None => Ok(()),
            Some(words) => Err(not_yet(words.to_owned())),
        },
        Err(error) => Err(not_yet(format!("no answer from the net daemon at {}: {error}", config.socket.display()))),
    }
}

/// Those of the interface.
fn addresses(call: &Call, previous: &Success) -> Vec<IpAddr> {
    let own = |at: usize| {
        previous
            .interfaces
            .get(at)
            .is_none_or(|interface| interface.name == call.ifname && !interface.sandbox.is_empty())
    };
    previous.ips.iter().filter(|ip| ip.interface.is_none_or(own)).map(|ip| ip.address.ip()).collect()
}

/// The node's end of the container's veth; `None` where the interface is of another kind.
fn link(call: &Call) -> Result<Option<String>, Error> {
    let path = call.netns.as_deref().unwrap_or(Path::new(""));
    let netns = Netns::open(path).map_err(Error::internal)?;
    let mut inside = netns.run(Kernel::open).map_err(Error::internal)?.map_err(Error::internal)?;
    let inner = inside.link(&call.ifname).map_err(Error::internal)?;
    let Some(peer) = inner.as_ref().filter(|link| link.kind == "veth").and_then(|link| link.peer) else {
        return Ok(None);
    };
    let inner = inner.map(|link| link.index);
    let links = Kernel::open().and_then(|mut node| node.links()).map_err(Error::internal)?;
    let outer = links.into_iter().find(|link| link.index == peer && link.peer == inner);
    Ok(outer.map(|link| link.name))
}

/// One question and its answer, a line of JSON each. A daemon that is away is waited for.
fn ask(socket: &Path, request: &Value, patience: Duration) -> io::Result<Value> {
    let until = Instant::now() + patience;
    loop {
        match exchange(socket, request, until) {
            Err(error) if is_away(&error) && Instant::now() + Duration::from_millis(100) < until => {
                std::thread::sleep(Duration::from_millis(100));
            }
            outcome => return outcome,
        }
    }
}

/// Not there, or gone in the midst of its answer.
fn is_away(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof};
    matches!(error.kind(), NotFound | ConnectionRefused | ConnectionReset | BrokenPipe | UnexpectedEof)
}

fn exchange(socket: &Path, request: &Value, until: Instant) -> io::Result<Value> {
    let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(left))?;
    stream.set_write_timeout(Some(left))?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut line = String::new();
    if BufReader::new(stream).read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&line)?)
}
