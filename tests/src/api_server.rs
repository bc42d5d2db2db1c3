//! As much of an API server as a proxy asks for: Nodes, Services and EndpointSlices to list and watch, in a network
//! namespace that reaches nothing else. It takes what a real one would default, so that both proxies see the same bytes.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

pub const PORT: u16 = 8001;
const END_OF_LIST: &str = "k8s.io/initial-events-end";

type Query = BTreeMap<String, String>;

#[derive(Default)]
pub struct Objects {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Resource (`services`), then `NAMESPACE/NAME`.
    objects: BTreeMap<String, BTreeMap<String, Value>>,
    /// Every change, in order; an event's version is its place.
    log: Vec<(String, Value)>,
}

/// Whether an object is among those that a client asked for.
type Fits<'a> = &'a dyn Fn(&Value) -> bool;

impl Objects {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates or replaces.
    pub fn put(&self, resource: &str, mut object: Value) {
        let mut state = self.state();
        let version = state.log.len() + 1;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let name = name(&object);
        object["metadata"]["uid"] = format!("{resource}-{name}").into();
        let before = state.objects.entry(resource.into()).or_default().insert(name, object.clone());
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        state.log.push((resource.into(), json!({"type": kind, "object": object})));
        self.changed.notify_all();
    }

    /// # Panics
    /// Where it is not there.
    pub fn delete(&self, resource: &str, name: &str) {
        let mut state = self.state();
        let mut object = state.objects.get_mut(resource).and_then(|of| of.remove(name)).expect("it is there");
        object["metadata"]["resourceVersion"] = (state.log.len() + 1).to_string().into();
        state.log.push((resource.into(), json!({"type": "DELETED", "object": object})));
        self.changed.notify_all();
    }

    /// Serves on `listener` as long as the process lives.
    pub fn serve(self: &Arc<Self>, listener: TcpListener) {
        let objects = self.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let objects = objects.clone();
                std::thread::spawn(move || while objects.answer(&stream).is_some() {});
            }
        });
    }

    /// Answers one request; `None` where the connection is done with.
    fn answer(&self, stream: &TcpStream) -> Option<()> {
        let (path, query) = read_request(stream)?;
        let resource = path.rsplit('/').next().unwrap_or_default().to_owned();
        // A single Node is asked for by its name.
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        if let ["api", "v1", "nodes", name] = parts[..] {
            let node = self.state().objects.get("nodes")?.get(&format!("/{name}")).cloned();
            return reply(stream, node);
        }
        let (group, kind) = match resource.as_str() {
            "services" => ("v1", "Service"),
            "nodes" => ("v1", "Node"),
            "endpointslices" => ("discovery.k8s.io/v1", "EndpointSlice"),
            "servicecidrs" => ("networking.k8s.io/v1", "ServiceCIDR"),
            _ => return reply(stream, None),
        };
        let wanted = query.get("fieldSelector").and_then(|text| text.strip_prefix("metadata.name=")).map(str::to_owned);
        let fits = |object: &Value| wanted.as_ref().is_none_or(|name| object["metadata"]["name"] == **name);
        if query.get("watch").is_some_and(|word| word == "true" || word == "1") {
            return self.watch(stream, &resource, (group, kind), (&query, &fits));
        }
        let state = self.state();
        let items: Vec<Value> =
            state.objects.get(&resource).into_iter().flat_map(BTreeMap::values).filter(|o| fits(o)).cloned().collect();
        let version = state.log.len().to_string();
        drop(state);
        let list = json!({"apiVersion": group, "kind": format!("{kind}List"),
                          "metadata": {"resourceVersion": version}, "items": items});
        reply(stream, Some(list))
    }

    fn watch(
        &self,
        mut stream: &TcpStream,
        resource: &str,
        (group, kind): (&str, &str),
        (query, fits): (&Query, Fits<'_>),
    ) -> Option<()> {
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
            .ok()?;
        let send = |event: &Value| {
            let text = format!("{event}\n");
            let mut stream = stream;
            stream.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).ok()
        };
        let mut at: usize = query.get("resourceVersion").and_then(|text| text.parse().ok()).unwrap_or(0);
        if query.get("sendInitialEvents").is_some_and(|word| word == "true") {
            let state = self.state();
            at = state.log.len();
            let items: Vec<Value> = state
                .objects
                .get(resource)
                .into_iter()
                .flat_map(BTreeMap::values)
                .filter(|o| fits(o))
                .cloned()
                .collect();
            drop(state);
            for object in items {
                send(&json!({"type": "ADDED", "object": object}))?;
            }
            send(&json!({"type": "BOOKMARK", "object": {
                "apiVersion": group, "kind": kind,
                "metadata": {"resourceVersion": at.to_string(), "annotations": {END_OF_LIST: "true"}}}}))?;
        }
        let mut state = self.state();
        loop {
            let news: Vec<Value> = state.log[at.min(state.log.len())..]
                .iter()
                .filter(|(of, event)| of == resource && fits(&event["object"]))
                .map(|(_, event)| event.clone())
                .collect();
            at = state.log.len();
            drop(state);
            for event in news {
                send(&event)?;
            }
            let waited = self.changed.wait_timeout(self.state(), Duration::from_secs(5));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn name(object: &Value) -> String {
    let word = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
    format!("{}/{}", word("namespace"), word("name"))
}

/// Path and query of the next request.
fn read_request(stream: &TcpStream) -> Option<(String, Query)> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|size| *size > 0)?;
    let target = line.split(' ').nth(1)?.to_owned();
    let mut length = 0;
    loop {
        line.clear();
        reader.read_line(&mut line).ok().filter(|size| *size > 0)?;
        let header = line.trim().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        length = header.strip_prefix("content-length:").and_then(|text| text.trim().parse().ok()).unwrap_or(length);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    Some((path.to_owned(), pairs.map(|(key, value)| (key.to_owned(), value.replace("%3D", "="))).collect()))
}

fn reply(mut stream: &TcpStream, object: Option<Value>) -> Option<()> {
    let status = if object.is_some() { "200 OK" } else { "404 Not Found" };
    let missing =
        || json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404});
    let body = object.unwrap_or_else(missing).to_string();
    let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).ok()
}
