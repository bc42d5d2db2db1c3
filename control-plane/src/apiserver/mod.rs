//! The API server as a daemon: flags, what runs beside the requests, and the end.

mod bootstrap;
mod listen;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use ipnetwork::IpNetwork;
use lifecycle::Stop;
use lifecycle::pki::Identity;
use lifecycle::tls::{ServerTrust, client_config};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::ports::Ports;
use crate::registry::Registry;
use crate::server::{Config, Server};
use crate::store::{self, Embedded, Revision, Store};
use crate::token::{Keys, Tokens};
use crate::{admission, authn, authz, registry, reviews, stream};

/// The API server's flags, named as kube-apiserver's.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The address to listen on.
    #[arg(long, default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
    /// The port to serve HTTPS on.
    #[arg(long, default_value_t = 6443)]
    pub secure_port: u16,
    /// The address that the members of the cluster reach; the one of the default route where it is not given.
    #[arg(long)]
    pub advertise_address: Option<IpAddr>,
    /// The server's certificate, and what signed it, as PEM.
    #[arg(long)]
    pub tls_cert_file: PathBuf,
    /// The key to it.
    #[arg(long)]
    pub tls_private_key_file: PathBuf,
    /// Who signs client certificates.
    #[arg(long)]
    pub client_ca_file: Option<PathBuf>,
    /// Public keys that service account tokens may be signed with. May be repeated.
    #[arg(long)]
    pub service_account_key_file: Vec<PathBuf>,
    /// The key that signs service account tokens.
    #[arg(long)]
    pub service_account_signing_key_file: PathBuf,
    /// What stands in tokens as their issuer.
    #[arg(long, default_value = "https://kubernetes.default.svc.cluster.local")]
    pub service_account_issuer: String,
    /// What tokens are for; the issuer where it is not given.
    #[arg(long, value_delimiter = ',')]
    pub api_audiences: Vec<String>,
    /// Where Services get their addresses from; one of each family, separated by a comma, the primary first
    #[arg(long, default_value = "10.96.0.0/16", value_delimiter = ',')]
    pub service_cluster_ip_range: Vec<IpNetwork>,
    /// Where Services get their node ports from.
    #[arg(long, default_value = "30000-32767", value_parser = port_range)]
    pub service_node_port_range: (u16, u16),
    /// What the server shows to kubelets.
    #[arg(long)]
    pub kubelet_client_certificate: Option<PathBuf>,
    /// The key to it.
    #[arg(long)]
    pub kubelet_client_key: Option<PathBuf>,
    /// Who signs the certificates of kubelets; they are not checked where it is not given.
    #[arg(long)]
    pub kubelet_certificate_authority: Option<PathBuf>,
    /// Which of a node's addresses to connect to; the default is what kubeadm sets.
    #[arg(long, value_delimiter = ',', default_value = "InternalIP,ExternalIP,Hostname")]
    pub kubelet_preferred_address_types: Vec<String>,
    /// An etcd to keep the objects in. Not supported yet.
    #[arg(long, value_delimiter = ',')]
    pub etcd_servers: Vec<String>,
    /// The folder of the embedded store.
    #[arg(long, default_value = "/var/lib/bosun/store")]
    pub data_dir: PathBuf,
}

fn port_range(text: &str) -> Result<(u16, u16), String> {
    let range = text.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    match range {
        Some((first, last)) if 0 < first && first <= last => Ok((first, last)),
        _ => Err(format!("{text:?} is no range of ports such as 30000-32767")),
    }
}

impl Options {
    fn config(&self) -> anyhow::Result<Config> {
        let advertise_address = match self.advertise_address {
            Some(address) => address,
            None if !self.bind_address.is_unspecified() => self.bind_address,
            None => default_address().context("find the address to advertise; say it with --advertise-address")?,
        };
        Ok(Config {
            advertise_address,
            secure_port: self.secure_port,
            service_cluster_ip_range: self.service_cluster_ip_range.clone(),
            service_node_port_range: self.service_node_port_range,
            service_account_issuer: self.service_account_issuer.clone(),
            api_audiences: self.api_audiences.clone(),
            kubelet_preferred_address_types: self.kubelet_preferred_address_types.clone(),
        })
    }

    /// Whom the server is to kubelets, and whom it believes.
    fn kubelet_tls(&self) -> anyhow::Result<rustls::ClientConfig> {
        let identity = match (&self.kubelet_client_certificate, &self.kubelet_client_key) {
            (Some(certificate), Some(key)) => Some(Identity::load(certificate, key)?),
            (None, None) => None,
            _ => bail!("--kubelet-client-certificate and --kubelet-client-key belong together"),
        };
        let read = |path: &PathBuf| std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
        let authority = self.kubelet_certificate_authority.as_ref().map(read).transpose()?;
        let trust = authority.as_deref().map_or(ServerTrust::Anybody, ServerTrust::Authority);
        client_config(trust, identity.as_ref()).context("make a TLS client for kubelets")
    }

    fn ports(&self) -> anyhow::Result<Ports> {
        let keys = Keys::load(&self.service_account_signing_key_file, &self.service_account_key_file)?;
        let audiences = self.api_audiences.clone();
        let tokens = Arc::new(Tokens::new(keys, self.service_account_issuer.clone(), audiences));
        Ok(Ports {
            authenticator: Box::new(authn::Authn { tokens: tokens.clone() }),
            authorizer: Box::new(authz::Fixed),
            admission: admission::plugins(),
            connector: Box::new(stream::Streams::new(self.kubelet_tls()?)),
            answerer: Box::new(reviews::Answers { tokens }),
        })
    }
}

/// The address that packets to elsewhere leave with. Nothing is sent.
fn default_address() -> std::io::Result<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
    Ok(socket.local_addr()?.ip())
}

/// Serves until stop is said.
///
/// # Errors
/// Where it cannot begin: a taken port, a store that another process has open, unusable certificates.
pub async fn run(options: Options, stop: Stop) -> anyhow::Result<()> {
    if !options.etcd_servers.is_empty() {
        bail!("--etcd-servers is not supported yet: leave it out to use the embedded store (--data-dir)");
    }
    let addresses = options.service_cluster_ip_range.clone();
    if !matches!(&addresses[..], [_] | [IpNetwork::V4(_), IpNetwork::V6(_)] | [IpNetwork::V6(_), IpNetwork::V4(_)]) {
        bail!("--service-cluster-ip-range takes one range, or one of each family");
    }
    registry::kinds::ServiceRanges { addresses, node_ports: options.service_node_port_range }.install();
    let tls = listen::tls(&options)?;
    let address = SocketAddr::new(options.bind_address, options.secure_port);
    let listener = listen::bind(address).await?;
    let store: Arc<dyn Store> = Arc::new(Embedded::open(&options.data_dir)?);
    let registry = Registry::new(registry::kinds::RESOURCES.to_vec());
    let mut server = Server::new(store, registry, Arc::new(SystemTime::now), options.config()?, options.ports()?);
    server.stop = stop.child();
    let server = Arc::new(server);
    let beside = tokio::spawn(keep(server.clone()));
    let serving = tokio::spawn(listen::serve(server.clone(), listener, tls));
    bootstrap::run(&server).await.context("store what must be there from the start")?;
    server.ready.store(true, Ordering::Release);
    tracing::info!(%address, revision = server.store.revision(), "serving the API");
    let kept = beside.await.context("the store's upkeep panicked")?;
    server.stop.stop();
    serving.await.context("the listener panicked")?;
    kept.context("the store gave up")
}

/// How often expired keys are looked for, watches are told how far they are, and history is dropped.
const EXPIRE: Duration = Duration::from_secs(5);
const PROGRESS: Duration = Duration::from_secs(10);
const COMPACT: Duration = Duration::from_secs(5 * 60);

/// The store's upkeep until the server stops. History is kept for one to two periods of compaction.
///
/// # Errors
/// Where the store is closed: a new process may open it again.
async fn keep(server: Arc<Server>) -> Result<(), store::Error> {
    let ticker = |period| {
        let mut ticker = interval(period);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticker
    };
    let mut expire = ticker(EXPIRE);
    let mut progress = ticker(PROGRESS);
    let mut compact = tokio::time::interval_at(Instant::now() + COMPACT, COMPACT);
    let mut mark: Revision = server.store.revision();
    loop {
        tokio::select! {
            _ = expire.tick() => {
                match server.store.expire(server.now().unsigned_abs()).await {
                    Ok(_) => {}
                    Err(error @ store::Error::Closed) => return Err(error),
                    Err(error) => tracing::error!(%error, "expired objects stay"),
                }
            }
            _ = progress.tick() => server.store.progress(),
            _ = compact.tick() => {
                if mark > server.store.compacted()
                    && let Err(error) = server.store.compact(mark).await
                {
                    tracing::error!(%error, "old revisions stay");
                }
                mark = server.store.revision();
            }
            () = server.stop.stopped() => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_ports() {
        assert_eq!(port_range("30000-32767"), Ok((30000, 32767)));
        assert!(port_range("32767-30000").is_err());
        assert!(port_range("30000").is_err());
    }
}
