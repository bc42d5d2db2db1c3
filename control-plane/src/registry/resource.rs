//! A row of the registry, and the decisions that differ from kind to kind.

use api::status::{FieldError, Status};
use serde_json::Value;

/// A kind of object that the API serves.
pub struct Resource {
    /// Empty for the legacy group.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    /// As `all`.
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    pub subresources: &'static [Subresource],
    /// What `kubectl get` prints after the name. A row with a column `Name` (events) says itself where the name stands.
    pub columns: &'static [Column],
    /// Fields, beside metadata.name and metadata.namespace, that a field selector may name; `kinds::selected` reads them.
    pub selectable: &'static [&'static str],
    /// How long an object lives after its last write, where it expires (Events).
    pub expires_after: Option<std::time::Duration>,
    /// Objects that are answered and never stored (reviews): only create works.
    pub virtual_only: bool,
    pub strategy: &'static dyn Strategy,
}

/// A part of an object, or an action on it, under a path of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subresource {
    Status,
    Scale,
    Finalize,
    Binding,
    Eviction,
    EphemeralContainers,
    Resize,
    Token,
    Log,
    Exec,
    Attach,
    PortForward,
    Proxy,
}

impl Subresource {
    const PATHS: &'static [(Self, &'static str)] = &[
        (Self::Status, "status"),
        (Self::Scale, "scale"),
        (Self::Finalize, "finalize"),
        (Self::Binding, "binding"),
        (Self::Eviction, "eviction"),
        (Self::EphemeralContainers, "ephemeralcontainers"),
        (Self::Resize, "resize"),
        (Self::Token, "token"),
        (Self::Log, "log"),
        (Self::Exec, "exec"),
        (Self::Attach, "attach"),
        (Self::PortForward, "portforward"),
        (Self::Proxy, "proxy"),
    ];

    /// As it stands in a path.
    pub fn path(self) -> &'static str {
        Self::PATHS.iter().find(|(known, _)| *known == self).map_or("", |(_, path)| path)
    }

    /// From a path's segment.
    pub fn parse(path: &str) -> Option<Self> {
        Self::PATHS.iter().find(|(_, known)| *known == path).map(|(subresource, _)| *subresource)
    }

    /// Whether a request to it is a stream, or goes on to somebody else.
    pub fn is_connect(self) -> bool {
        matches!(self, Self::Log | Self::Exec | Self::Attach | Self::PortForward | Self::Proxy)
    }
}

/// A column of a Table answer.
pub struct Column {
    /// As `Ready`; the client prints it in capitals.
    pub name: &'static str,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub kind: &'static str,
    /// 0 is shown always, above 0 with `-o wide`.
    pub priority: i32,
    pub description: &'static str,
    /// The cell. `now` is seconds since 1970, for ages.
    pub cell: fn(object: &Value, now: i64) -> Value,
}

/// What to do with an object that a client deletes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// Gone at once, finalizers permitting.
    Now,
    /// Marked, and gone when somebody deletes it with grace 0.
    Graceful { seconds: i64 },
}

/// What is particular to a kind. Pure: no I/O, no clock; times and names come in as values.
///
/// The order for a create: decode, `default`, admission, `prepare_create`, `allocate`, `validate`, store.
/// For an update: decode or patch, `default`, admission, `prepare_update`, `allocate`, `validate` and
/// `validate_update`, store if the revision is the one that was read.
pub trait Strategy: Send + Sync {
    /// Fills in what the API documents as default. Idempotent.
    fn default(&self, _object: &mut Value) {}

    /// Drops what a client may not set (status), sets `metadata.generation` to 1 where the kind has one.
    fn prepare_create(&self, _object: &mut Value) {}

    /// Keeps what a plain update may not change (status), counts `metadata.generation` up when the spec changed.
    fn prepare_update(&self, _new: &mut Value, _old: &Value) {}

    /// For a write to `status`: keeps everything but the status as it was.
    fn prepare_status(&self, new: &mut Value, old: &Value) {
        let status = new.get("status").cloned();
        let version = new.pointer("/metadata/resourceVersion").cloned();
        let mut kept = old.clone();
        if let Some(map) = kept.as_object_mut() {
            match status {
                Some(status) => map.insert("status".into(), status),
                None => map.shift_remove("status"),
            };
        }
        if let (Some(version), Some(metadata)) = (version, kept["metadata"].as_object_mut()) {
            metadata.insert("resourceVersion".into(), version);
        }
        *new = kept;
    }

    /// All that is wrong, beyond what the schema says (the schema and `metadata` are checked before).
    fn validate(&self, _object: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    /// What may not change.
    fn validate_update(&self, _new: &Value, _old: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    /// `requested` is `gracePeriodSeconds` of the DeleteOptions.
    fn deletion(&self, _object: &Value, _requested: Option<i64>) -> Deletion {
        Deletion::Now
    }

    /// Chooses values that no other object may have (cluster IPs, node ports), for fields that are empty.
    /// `taken` tells whether a claim is held by another object; `random` seeds the choice.
    ///
    /// # Errors
    /// Where nothing is free.
    fn allocate(&self, _object: &mut Value, _taken: &dyn Fn(&str) -> bool, _random: u64) -> Result<(), Status> {
        Ok(())
    }

    /// The claims that this object holds, as `serviceips/10.96.0.1` or `nodeports/30080`. The store writes the
    /// object and takes its new claims in one transaction, and frees them with it.
    fn claims(&self, _object: &Value) -> Vec<String> {
        Vec::new()
    }

    /// For a claim that an object wanted by value and somebody else holds: the field's error.
    fn claimed(&self, claim: &str) -> FieldError {
        FieldError::invalid("spec", claim, "provided value is already allocated")
    }
}

/// A kind without particulars.
pub struct Plain;

impl Strategy for Plain {}
