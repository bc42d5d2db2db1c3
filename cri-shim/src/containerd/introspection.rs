//! Which containerd it is and what it can do. Source: containerd, api/services/{version,introspection}/v1.

use containerd_client::services::v1::introspection_client::IntrospectionClient;
use containerd_client::services::v1::version_client::VersionClient;
use containerd_client::services::v1::{Plugin, PluginsRequest};

use super::{Containerd, Error, Result, request};

impl Containerd {
    /// Its version, such as `1.6.20~ds1`. The quickest proof that it serves.
    ///
    /// # Errors
    /// `Unavailable` where nobody answers.
    pub async fn version(&self) -> Result<String> {
        let answer = VersionClient::new(self.channel()).version(request(())).await;
        Ok(answer.map_err(Error::of("ask containerd for its version"))?.into_inner().version)
    }

    /// Its plugins of one type, such as `io.containerd.snapshotter.v1`.
    ///
    /// # Errors
    /// What containerd said.
    pub async fn plugins(&self, plugin_type: &str) -> Result<Vec<Plugin>> {
        let message = PluginsRequest { filters: vec![format!("type=={plugin_type}")] };
        let answer = IntrospectionClient::new(self.channel()).plugins(request(message)).await;
        Ok(answer.map_err(Error::of(format!("list plugins of type {plugin_type}")))?.into_inner().plugins)
    }
}
