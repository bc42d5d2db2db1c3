//! Leases: what keeps new objects from the garbage collector until something lasting refers to them.
//! Source: api/services/leases/v1/leases.proto, docs/garbage-collection.md.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::{AddResourceRequest, CreateRequest, DeleteRequest, ListRequest, Resource};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

use super::{Containerd, Error, Result, request};

/// Marks the leases that are ours, so that a start finds those of a shim that died.
const OURS: &str = "bosun.io/lease";
/// A lease that nobody ends is ended by containerd after this time.
const LIFE: Duration = Duration::from_secs(24 * 3600);

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// A lease. Ended by [`Lease::end`], and by being dropped, as a call does whose caller went away.
pub struct Lease {
    containerd: Containerd,
    id: String,
    header: MetadataValue<Ascii>,
    ended: bool,
}

impl Containerd {
    fn leases(&self) -> LeasesClient<Channel> {
        LeasesClient::new(self.channel())
    }

    /// # Errors
    /// Where containerd fails.
    pub async fn lease(&self) -> Result<Lease> {
        let now = SystemTime::now();
        let nanos = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let id = format!("bosun-{nanos:x}-{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        let header = id.parse().map_err(|_| Error::Other {
            attempt: format!("name a lease \"{id}\""),
            message: "it cannot be put into a header".to_owned(),
        })?;
        let expiry = OffsetDateTime::from(now + LIFE).format(&Rfc3339).unwrap_or_default();
        let labels =
            HashMap::from([(OURS.to_owned(), "true".to_owned()), ("containerd.io/gc.expire".to_owned(), expiry)]);
        let create = CreateRequest { id: id.clone(), labels };
        self.leases().create(request(create)).await.map_err(Error::of("create a lease"))?;
        Ok(Lease { containerd: self.clone(), id, header, ended: false })
    }

    /// Ends the leases that an earlier run of ours left; how many there were.
    ///
    /// # Errors
    /// The last failure, after all were tried.
    pub async fn leases_end_ours(&self) -> Result<usize> {
        let list = ListRequest { filters: vec![format!("labels.\"{OURS}\"==true")] };
        let leases = self.leases().list(request(list)).await.map_err(Error::of("list leases"))?.into_inner().leases;
        let mut outcome = Ok(leases.len());
        for lease in leases {
            if let Err(error) = self.lease_delete(&lease.id).await {
                outcome = Err(error);
            }
        }
        outcome
    }

    async fn lease_delete(&self, id: &str) -> Result<()> {
        let delete = async || {
            let answer = self.leases().delete(request(DeleteRequest { id: id.to_owned(), sync: false })).await;
            answer.map_err(Error::of(format!("delete lease {id}")))
        };
        match self.freeing(delete).await {
            Err(Error::NotFound { .. }) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Lease {
    /// For [`super::leased`].
    pub fn header(&self) -> &MetadataValue<Ascii> {
        &self.header
    }

    /// Holds a blob, whether it is there already or comes later.
    ///
    /// # Errors
    /// Where containerd fails.
    pub async fn hold_content(&self, digest: &str) -> Result<()> {
        self.hold("content".to_owned(), digest).await
    }

    /// Holds a snapshot and, through it, its parents.
    ///
    /// # Errors
    /// Where containerd fails.
    pub async fn hold_snapshot(&self, snapshotter: &str, key: &str) -> Result<()> {
        self.hold(format!("snapshots/{snapshotter}"), key).await
    }

    async fn hold(&self, r#type: String, id: &str) -> Result<()> {
        let attempt = format!("hold {type} {id}");
        let add = AddResourceRequest { id: self.id.clone(), resource: Some(Resource { id: id.to_owned(), r#type }) };
        self.containerd.leases().add_resource(request(add)).await.map_err(Error::of(attempt))?;
        Ok(())
    }

    /// Ends it: what nothing else refers to is garbage from now on.
    pub async fn end(mut self) {
        self.ended = true;
        if let Err(error) = self.containerd.lease_delete(&self.id).await {
            // It expires by itself.
            tracing::warn!(%error, "a lease stays until it expires");
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if !self.ended {
            let (containerd, id) = (self.containerd.clone(), std::mem::take(&mut self.id));
            runtime.spawn(async move { containerd.lease_delete(&id).await });
        }
    }
}
