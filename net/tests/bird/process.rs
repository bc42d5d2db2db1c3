//! The speaker as a process: a line of JSON asks, a line answers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use net::speaker::{Config, Event, Handle, Origination, Predecessor};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum Request {
    Start {
        config: Config,
        restarting: bool,
        /// With whom the predecessor had sessions.
        #[serde(default)]
        sessions: Option<BTreeSet<IpAddr>>,
    },
    Configure {
        config: Config,
    },
    Originate {
        prefixes: Vec<String>,
    },
    /// So many /24 from this one on.
    OriginateMany {
        first: String,
        count: u32,
    },
    Peers,
    EndBfd,
    Table,
    Count,
    ShutDown {
        why: String,
    },
}

#[derive(Default)]
struct Table {
    routes: BTreeMap<String, Vec<String>>,
    synchronised: bool,
    /// Prefixes that lost all their next hops.
    lost: usize,
}

pub fn run() {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(serve());
}

async fn serve() {
    let table = Arc::new(Mutex::new(Table::default()));
    let mut handle: Option<Handle> = None;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        let answer = match serde_json::from_str(&line).unwrap() {
            Request::Start { config, restarting, sessions } => {
                let predecessor = if restarting { Predecessor::With(sessions) } else { Predecessor::None };
                let (started, events) = net::speaker::start(config, predecessor).await.unwrap();
                tokio::spawn(follow(events, Arc::clone(&table)));
                handle = Some(started);
                Value::Null
            }
            Request::Table => {
                let table = table.lock().unwrap();
                json!({"routes": table.routes, "synchronised": table.synchronised, "lost": table.lost})
            }
            Request::Count => json!(table.lock().unwrap().routes.len()),
            Request::ShutDown { why } => {
                handle.take().unwrap().shut_down(&why).await;
                Value::Null
            }
            request => ask(handle.as_mut().unwrap(), request).await,
        };
        println!("answer {answer}");
    }
}

async fn ask(handle: &mut Handle, request: Request) -> Value {
    let own = |prefix: String| Origination { prefix: prefix.parse().unwrap(), next_hop: None, communities: vec![] };
    match request {
        Request::Configure { config } => handle.configure(config).await.unwrap(),
        Request::EndBfd => handle.end_bfd().await,
        Request::Originate { prefixes } => handle.originate(&prefixes.into_iter().map(own).collect::<Vec<_>>()),
        Request::OriginateMany { first, count } => {
            let first = u32::from(first.parse::<std::net::Ipv4Addr>().unwrap());
            let address = |index: u32| std::net::Ipv4Addr::from(first + (index << 8));
            let routes: Vec<Origination> = (0..count).map(|index| own(format!("{}/24", address(index)))).collect();
            handle.originate(&routes);
        }
        _ => return serde_json::to_value(handle.peers()).unwrap(),
    }
    Value::Null
}

async fn follow(mut events: tokio::sync::mpsc::Receiver<Event>, table: Arc<Mutex<Table>>) {
    while let Some(event) = events.recv().await {
        let mut table = table.lock().unwrap();
        let changes = match event {
            Event::Changes(changes) => changes,
            Event::Synchronised => {
                table.synchronised = true;
                continue;
            }
            Event::Established(_) => continue,
        };
        for change in changes {
            let prefix = change.prefix.to_string();
            if change.next_hops.is_empty() {
                table.lost += usize::from(table.routes.remove(&prefix).is_some());
            } else {
                let hops = change.next_hops.iter().map(|hop| hop.address.to_string()).collect();
                table.routes.insert(prefix, hops);
            }
        }
    }
}
