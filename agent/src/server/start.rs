//! The daemon's side of the server: listeners, certificate, statistics and log rotation, from the configuration.

use std::net::SocketAddr;
use std::sync::Arc;

use lifecycle::Stop;
use tokio::net::TcpListener;

use super::{Health, PairFiles, Parts, ServerError, serve, serve_healthz, serving_files};
use crate::log::{Rotation, run_rotation};
use crate::options::Options;
use crate::pod::{Context, Pods};
use crate::quantity;
use crate::stats::{Places, Stats};

/// Ports that are bound and what will be served on them.
pub struct Daemon {
    parts: Parts,
    listener: TcpListener,
    own: PairFiles,
    healthz: Option<TcpListener>,
    rotation: Rotation,
}

impl Daemon {
    /// Binds the ports of the configuration, and makes or reads the serving certificate.
    ///
    /// # Errors
    /// Where a port is taken or the certificate unusable.
    pub async fn bind(ctx: &Context, pods: Arc<dyn Pods>, options: &Options) -> Result<Self, ServerError> {
        let config = &ctx.config;
        let own = serving_files(config, &options.cert_dir, &ctx.host.node_name, &ctx.host.ips)?;
        let listener = listen(SocketAddr::new(config.address, config.port)).await?;
        let healthz = match config.healthz_port {
            0 => None,
            port => Some(listen(SocketAddr::new(config.healthz_bind_address, port)).await?),
        };
        let places = Places { node_name: ctx.host.node_name.clone(), root: ctx.root_dir.clone() };
        let parts = Parts {
            config: Arc::new(config.clone()),
            node_name: ctx.host.node_name.clone(),
            stats: Arc::new(Stats::new(pods.clone(), ctx.cgroups.clone(), ctx.runtime.clone(), places)),
            pods,
            runtime: ctx.runtime.clone(),
            client: ctx.client.clone(),
            health: healthy(),
        };
        let default = Rotation::default();
        let max_size = quantity::units(&config.container_log_max_size).and_then(|size| u64::try_from(size).ok());
        let rotation = Rotation {
            max_size: max_size.unwrap_or(default.max_size),
            max_files: config.container_log_max_files,
            interval: config.container_log_monitor_interval,
        };
        Ok(Self { parts, listener, own, healthz, rotation })
    }

    /// Serves, and rotates logs, until `stop`.
    ///
    /// # Errors
    /// Where the certificate or the client authority is unusable.
    pub async fn run(self, stop: Stop) -> Result<(), ServerError> {
        let health = self.parts.health.clone();
        let healthz = async {
            if let Some(listener) = self.healthz {
                serve_healthz(listener, health, stop.clone()).await;
            }
            Ok(())
        };
        let logs = self.parts.config.pod_logs_dir.clone();
        let runtime = self.parts.runtime.clone();
        let rotation = async {
            run_rotation(logs, self.rotation, runtime, stop.clone()).await;
            Ok(())
        };
        tokio::try_join!(serve(self.parts, self.listener, &self.own, stop.clone()), healthz, rotation)?;
        Ok(())
    }
}

/// The process answers, so its runtime turns: the kubelet's ping.
fn healthy() -> Health {
    Arc::new(|| Ok(()))
}

async fn listen(address: SocketAddr) -> Result<TcpListener, ServerError> {
    TcpListener::bind(address).await.map_err(|source| ServerError::Listen { address, source })
}
