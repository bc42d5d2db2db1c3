//! The BGP speaker of this node, as the configuration wants it: started, changed and ended with the mode `bgp`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bgp::attributes::Community;
use bgp::filter::Links;
use bgp::{Prefix, rib};
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1 as core;
use kube::{Api, Client};
use lifecycle::file;
use tokio::sync::Mutex;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::task::JoinSet;

use super::advertise::{self, Service, advertised};
use super::learned::Change;
use super::model::{Interface, Node};
use super::plan;
use super::watch::{self, News};
use crate::config::{self, Config};
use crate::speaker::mesh::{self, Passwords, SecretKeyRef};
use crate::speaker::{self, Event, Handle, Origination, Password, Predecessor};

/// The speaker, where there is one; whoever asks for its peers shares it.
pub type Shared = Arc<Mutex<Option<Handle>>>;

/// What the driver goes by.
pub struct Cluster<'a> {
    pub me: &'a str,
    pub nodes: &'a BTreeMap<String, Node>,
    pub config: &'a Config,
    pub interfaces: &'a [Interface],
    /// Whether the kernel has routes of a predecessor.
    pub restarting: bool,
}

pub struct Driver {
    client: Client,
    news: Sender<News>,
    speaker: Shared,
    /// Which of the speakers that there were is the present one: what is on the way from others is nothing any more.
    pub turn: u64,
    /// As the speaker has it.
    config: Option<speaker::Config>,
    told: Vec<Origination>,
    /// With whom there was a session, for a successor to know.
    sessions: PathBuf,
    services: BTreeMap<String, Service>,
    /// Slices with a ready endpoint on this node, by Service and name.
    local: BTreeSet<(String, String)>,
    /// Of the speaker's news, and of Services where they are told of.
    tasks: JoinSet<()>,
    watching: bool,
}

impl Driver {
    /// `state` is the folder of what a successor must know.
    pub fn new(client: Client, news: Sender<News>, speaker: Shared, state: &Path) -> Self {
        Self {
            client,
            news,
            speaker,
            turn: 0,
            config: None,
            told: Vec::new(),
            sessions: state.join("bgp-sessions.json"),
            services: BTreeMap::new(),
            local: BTreeSet::new(),
            tasks: JoinSet::new(),
            watching: false,
        }
    }

    /// Takes in a Service. `false` where it changes nothing.
    pub fn service(&mut self, name: String, service: Option<Service>) -> bool {
        match service {
            Some(service) => self.services.insert(name, service.clone()).as_ref() != Some(&service),
            None => self.services.remove(&name).is_some(),
        }
    }

    /// Takes in whether a slice of a Service has an endpoint here.
    pub fn slice(&mut self, service: String, slice: String, here: bool) -> bool {
        match here {
            true => self.local.insert((service, slice)),
            false => self.local.remove(&(service, slice)),
        }
    }

    /// Ends the speaker, as another mode was chosen: peers are told, and drop this node's routes.
    pub async fn end(&mut self) {
        if let Some(handle) = self.speaker.lock().await.take() {
            handle.shut_down("the mode of the cluster's network is no longer bgp").await;
            // It may never have been written.
            let _ = std::fs::remove_file(&self.sessions);
        }
        self.tasks.shutdown().await;
        (self.config, self.watching) = (None, false);
        self.turn += 1;
        self.told.clear();
        self.services.clear();
        self.local.clear();
    }

    /// Brings the speaker to the configuration.
    ///
    /// # Errors
    /// One line for the operator.
    pub async fn bring(&mut self, cluster: &Cluster<'_>) -> Result<(), String> {
        let wanted = self.wanted(cluster).await?;
        let shared = Arc::clone(&self.speaker);
        let mut speaker = shared.lock().await;
        match speaker.as_mut() {
            None => {
                let predecessor = match cluster.restarting {
                    true => Predecessor::With(read_sessions(&self.sessions)),
                    false => Predecessor::None,
                };
                let started = speaker::start(wanted.clone(), predecessor).await.map_err(|e| e.to_string())?;
                self.tasks.spawn(forward(started.1, self.turn, self.news.clone(), self.sessions.clone()));
                *speaker = Some(started.0);
                self.told.clear();
            }
            Some(handle) if self.config.as_ref() != Some(&wanted) => {
                handle.configure(wanted.clone()).await.map_err(|error| error.to_string())?;
            }
            Some(_) => {}
        }
        self.config = Some(wanted);
        self.watch(cluster);
        let communities = mesh::advertisements(&cluster.config.bgp).map_err(invalid)?;
        let own = self.advertised(cluster);
        let told: Vec<Origination> = own.iter().filter_map(|prefix| origination(prefix, &communities)).collect();
        if let (Some(handle), true) = (speaker.as_ref(), told != self.told) {
            handle.originate(&told);
            self.told = told;
        }
        Ok(())
    }

    async fn wanted(&self, cluster: &Cluster<'_>) -> Result<speaker::Config, String> {
        let nodes: Vec<mesh::Node> = cluster
            .nodes
            .iter()
            .map(|(name, node)| mesh::Node {
                name: name.clone(),
                labels: node.labels.clone(),
                addresses: node.addresses.clone(),
                as_number: node.as_number,
                cluster_id: node.reflector,
            })
            .collect();
        let bgp = &cluster.config.bgp;
        let passwords = self.passwords(bgp).await;
        let mut wanted = mesh::config(cluster.me, &nodes, bgp, &passwords).map_err(invalid)?;
        if wanted.asks_for_links() {
            wanted.links = links(cluster.interfaces);
        }
        Ok(wanted)
    }

    /// The passwords that the configuration names, of those Secrets that are there.
    async fn passwords(&self, bgp: &mesh::Bgp) -> Passwords {
        let named = bgp.peers.iter().filter_map(|peer| peer.password.as_ref()).chain(&bgp.node_mesh_password);
        let wanted: BTreeSet<&SecretKeyRef> = named.map(|reference| &reference.secret_key_ref).collect();
        let api: Api<core::Secret> = Api::namespaced(self.client.clone(), config::NAMESPACE);
        let mut passwords = Passwords::new();
        let names: BTreeSet<&str> = wanted.iter().map(|reference| reference.name.as_str()).collect();
        for name in names {
            let secret = match api.get_opt(name).await {
                Ok(secret) => secret.unwrap_or_default(),
                Err(error) => {
                    tracing::warn!("cannot read Secret {}/{name}: {error}", config::NAMESPACE);
                    continue;
                }
            };
            for reference in wanted.iter().filter(|reference| reference.name == name) {
                let bytes = secret.data.as_ref().and_then(|data| data.get(&reference.key));
                if let Some(text) = bytes.and_then(|bytes| String::from_utf8(bytes.0.clone()).ok()) {
                    passwords.insert((*reference).clone(), Password(text));
                }
            }
        }
        passwords
    }

    /// Services concern this node only where their addresses are told of.
    fn watch(&mut self, cluster: &Cluster<'_>) {
        if self.watching || cluster.config.ranges == advertise::Ranges::default() {
            return;
        }
        self.watching = true;
        self.tasks.spawn(watch::services(self.client.clone(), self.news.clone()));
        self.tasks.spawn(watch::slices(self.client.clone(), cluster.me.to_owned(), self.news.clone()));
    }

    fn advertised(&self, cluster: &Cluster<'_>) -> BTreeSet<IpNetwork> {
        let Some(me) = cluster.nodes.get(cluster.me) else { return BTreeSet::new() };
        let here = |name: &String| {
            let first = (name.clone(), String::new());
            self.local.range(first..).next().is_some_and(|(service, _)| service == name)
        };
        let services = self.services.iter().map(|(name, service)| (service, here(name)));
        advertised(&me.pod_cidrs, &cluster.config.ranges, services, me.labels.contains_key(advertise::EXCLUDED))
    }
}

fn invalid(error: mesh::Error) -> String {
    format!("ConfigMap {}/{}: {error}", config::NAMESPACE, config::NAME)
}

fn links(interfaces: &[Interface]) -> Links {
    let link = |interface: &Interface, net: &IpNetwork| {
        Some((Prefix::new(net.network(), net.prefix())?, interface.name.as_str().into()))
    };
    let up = interfaces.iter().filter(|interface| interface.up);
    Links::new(up.flat_map(|interface| interface.addresses.iter().filter_map(|net| link(interface, net))))
}

fn origination(prefix: &IpNetwork, communities: &[(Prefix, Vec<Community>)]) -> Option<Origination> {
    let prefix = Prefix::new(prefix.network(), prefix.prefix())?;
    let around = communities.iter().filter(|(cidr, _)| cidr.contains(&prefix));
    let communities = around.flat_map(|(_, own)| own.iter().copied()).collect();
    Some(Origination { prefix, next_hop: None, communities })
}

/// With whom the predecessor had sessions; `None` where it did not say.
fn read_sessions(path: &Path) -> Option<BTreeSet<IpAddr>> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn write_sessions(path: &Path, sessions: &BTreeSet<IpAddr>) {
    let written = serde_json::to_vec(sessions).map_err(std::io::Error::from);
    if let Err(error) = written.and_then(|text| file::write_atomic(path, &text, 0o600)) {
        tracing::warn!("a restart will wait for all BGP peers: cannot write {}: {error}", path.display());
    }
}

/// Hands the speaker's news on, until either side goes.
async fn forward(mut events: Receiver<Event>, turn: u64, news: Sender<News>, sessions: PathBuf) {
    while let Some(event) = events.recv().await {
        let told = match event {
            Event::Changes(changes) => News::Learned(turn, learned(&changes)),
            Event::Synchronised => News::Synchronised(turn),
            Event::Established(peers) => {
                write_sessions(&sessions, &peers);
                continue;
            }
        };
        if news.send(told).await.is_err() {
            return;
        }
    }
}

/// Prefixes of the same next hops share their path.
fn learned(changes: &[rib::Change]) -> Vec<Change> {
    let mut last: Option<(&rib::Change, Option<Arc<plan::Path>>)> = None;
    let change = |change| {
        let known = last.take().filter(|(known, _)| same_way(known, change)).map(|(_, path)| path);
        let path = known.unwrap_or_else(|| path(change));
        last = Some((change, path.clone()));
        let prefix = IpNetwork::new(change.prefix.address(), change.prefix.length()).ok()?;
        Some((prefix, path))
    };
    changes.iter().filter_map(change).collect()
}

fn same_way(one: &rib::Change, other: &rib::Change) -> bool {
    Arc::ptr_eq(&one.next_hops, &other.next_hops) && one.priority == other.priority
}

fn path(change: &rib::Change) -> Option<Arc<plan::Path>> {
    let gateways: BTreeSet<IpAddr> = change.next_hops.iter().map(|hop| hop.address).collect();
    (!gateways.is_empty()).then(|| Arc::new(plan::Path { gateways, metric: change.priority.unwrap_or(0) }))
}
