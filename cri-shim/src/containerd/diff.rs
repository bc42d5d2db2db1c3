//! The diff service: it decompresses a layer and puts it into a snapshot, and finds what a snapshot has more. Source: api/services/diff/v1/diff.proto.

use std::collections::HashMap;

use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::{ApplyRequest, DiffRequest};
use containerd_client::types::{Descriptor, Mount};

use super::leases::Lease;
use super::{Containerd, Error, Result, leased, unbounded};

impl Containerd {
    /// Unpacks the layer `diff` of the content store into `mounts`. Answers with the digest of the uncompressed tar.
    ///
    /// # Errors
    /// Where the layer cannot be unpacked.
    pub async fn diff_apply(&self, diff: Descriptor, mounts: Vec<Mount>) -> Result<String> {
        let attempt = format!("unpack layer {}", diff.digest);
        let apply = ApplyRequest { diff: Some(diff), mounts, payloads: HashMap::new(), sync_fs: false };
        // A large layer takes minutes.
        let answer = DiffClient::new(self.channel()).apply(unbounded(apply)).await.map_err(Error::of(attempt))?;
        Ok(answer.into_inner().applied.unwrap_or_default().digest)
    }

    /// Puts a plain tar of what `right` has and `left` has not into the content store, where `lease` holds it. Answers with
    /// its digest. `attempt` says what for.
    ///
    /// # Errors
    /// Where the two cannot be compared.
    pub async fn diff(&self, left: Vec<Mount>, right: Vec<Mount>, lease: &Lease, attempt: &str) -> Result<String> {
        let media_type = "application/vnd.oci.image.layer.v1.tar".to_owned();
        let diff = DiffRequest { left, right, media_type, ..DiffRequest::default() };
        let call = leased(unbounded(diff), lease.header());
        let answer = DiffClient::new(self.channel()).diff(call).await.map_err(Error::of(attempt))?;
        Ok(answer.into_inner().diff.unwrap_or_default().digest)
    }
}
