//! The diff service: it decompresses a layer and puts it into a snapshot. Source: api/services/diff/v1/diff.proto.

use std::collections::HashMap;

use containerd_client::services::v1::ApplyRequest;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::types::{Descriptor, Mount};

use super::{Containerd, Error, Result, unbounded};

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
}
