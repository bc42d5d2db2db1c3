//! Update and patch: read, change, default, admit, prepare, validate, and store if nobody was faster.

use std::sync::Arc;

use api::status::{FieldError, Status};
use serde_json::Value;

use super::{Call, deletion, meta, metadata, namespaces, subresources};
use crate::ports::Operation;
use crate::registry::storage;
use crate::server::{Server, decode, from_store, qualified};
use crate::store::{Compare, Op, Outcome, Txn};

/// How often a change without a resourceVersion is tried anew against a newer object.
const ATTEMPTS: usize = 50;

/// A new state as a function of the one that is stored.
pub type Patch = Box<dyn Fn(&Value) -> Result<Value, Status> + Send + Sync>;

/// How a new state is made from the one that is stored.
pub enum Change {
    Replace(Value),
    /// May be called again, where somebody else was faster.
    Patch(Patch),
}

/// The object after an update.
#[derive(Debug, Clone, PartialEq)]
pub struct Updated {
    pub object: Value,
    /// The update took the last finalizer of a dying object away, and the object with it.
    pub deleted: bool,
}

impl Server {
    /// Changes an object, or the part of it that `call.subresource` names.
    ///
    /// # Errors
    /// What the API answers.
    pub async fn update_object(&self, call: &mut Call, change: &Change) -> Result<Updated, Status> {
        let key = storage::key(call.resource, &call.namespace, &call.name);
        for _ in 0..ATTEMPTS {
            let Some(entry) = self.store.get(&key).await.map_err(from_store)?.1 else {
                return Err(Status::not_found(&qualified(call.resource), &call.name));
            };
            let old = Arc::new(decode(call.resource, &entry)?);
            call.warnings.clear();
            let (new, pinned) = self.next_state(call, change, &old).await?;
            let Some(updated) = self.store_update(call, &key, new, &old, entry.modified).await? else {
                if pinned {
                    return Err(Status::stale(&qualified(call.resource), &call.name));
                }
                continue;
            };
            return Ok(updated);
        }
        Err(Status::stale(&qualified(call.resource), &call.name))
    }

    /// The new state, and whether the client said which state it replaces.
    async fn next_state(&self, call: &mut Call, change: &Change, old: &Arc<Value>) -> Result<(Value, bool), Status> {
        let mut new = match change {
            Change::Replace(object) => object.clone(),
            Change::Patch(patch) => patch(old)?,
        };
        matches_request(call, &new)?;
        let current = meta(old, "resourceVersion").to_owned();
        let given = meta(&new, "resourceVersion").to_owned();
        let pinned = match change {
            Change::Replace(_) => !given.is_empty() && given != "0",
            Change::Patch(_) => !given.is_empty() && given != current,
        };
        if pinned && given != current {
            return Err(Status::stale(&qualified(call.resource), &call.name));
        }
        let uid = meta(&new, "uid");
        if !uid.is_empty() && uid != meta(old, "uid") {
            let why =
                format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", meta(old, "uid"));
            return Err(Status::conflict(&qualified(call.resource), &call.name, &why));
        }
        metadata::of(&mut new)?.insert("resourceVersion".into(), current.into());
        self.check_schema(call, &mut new)?;
        metadata::for_update(&mut new, old)?;
        call.resource.strategy.default(&mut new);
        let mut new = self.admit(call, Operation::Update, new, old.clone()).await?;
        subresources::prepare(call, &mut new, old);
        let own = call.resource.strategy.claims(old);
        self.allocate(call.resource, &mut new, &own)?;
        let strategy = call.resource.strategy;
        let mut errors: Vec<FieldError> = metadata::validate_update(&new, old);
        errors.extend(metadata::validate(call.resource, &new));
        errors.extend(strategy.validate(&new));
        if subresources::has_rules_of_its_own(call) {
            return self.refuse(call, &new, &errors).map(|()| (new, pinned));
        }
        errors.extend(strategy.validate_update(&new, old));
        self.refuse(call, &new, &errors).map(|()| (new, pinned))
    }

    /// None where somebody else was faster.
    async fn store_update(
        &self,
        call: &Call,
        key: &str,
        mut new: Value,
        old: &Value,
        revision: u64,
    ) -> Result<Option<Updated>, Status> {
        let over = deletion::is_over(&new) && !namespaces::has_content_finalizer(call, &new);
        if (new == *old && !over) || call.dry_run {
            return Ok(Some(Updated { object: new, deleted: over }));
        }
        let strategy = call.resource.strategy;
        let (held, claims) = (strategy.claims(old), strategy.claims(&new));
        let mut txn = Txn { compares: vec![Compare::Modified(key.to_owned(), revision)], ops: Vec::new() };
        if over {
            return self.store_gone(txn, key, new, &held).await;
        }
        let fresh: Vec<String> = claims.iter().filter(|c| !held.contains(c)).cloned().collect();
        txn.compares.extend(fresh.iter().map(|c| Compare::Absent(storage::claim_key(c))));
        txn.ops = self.puts(call.resource, key, &new, &fresh)?;
        let freed = held.iter().filter(|c| !claims.contains(c));
        txn.ops.extend(freed.map(|c| Op::Delete { key: storage::claim_key(c) }));
        match self.store.txn(txn).await.map_err(from_store)? {
            Outcome::Done(revision) => {
                new["metadata"]["resourceVersion"] = revision.to_string().into();
                Ok(Some(Updated { object: new, deleted: false }))
            }
            Outcome::Failed(0) => Ok(None),
            Outcome::Failed(index) => {
                let errors = [strategy.claimed(&fresh[index - 1])];
                self.refuse(call, &new, &errors).map(|()| None)
            }
        }
    }

    /// Removes an object that nothing keeps any more.
    async fn store_gone(
        &self,
        mut txn: Txn,
        key: &str,
        mut object: Value,
        held: &[String],
    ) -> Result<Option<Updated>, Status> {
        txn.ops = removal(key, held);
        match self.store.txn(txn).await.map_err(from_store)? {
            Outcome::Done(revision) => {
                object["metadata"]["resourceVersion"] = revision.to_string().into();
                Ok(Some(Updated { object, deleted: true }))
            }
            Outcome::Failed(_) => Ok(None),
        }
    }
}

/// The writes that take an object and its claims away.
pub(super) fn removal(key: &str, claims: &[String]) -> Vec<Op> {
    let claims = claims.iter().map(|claim| storage::claim_key(claim));
    std::iter::once(key.to_owned()).chain(claims).map(|key| Op::Delete { key }).collect()
}

fn matches_request(call: &Call, new: &Value) -> Result<(), Status> {
    let (name, namespace) = (meta(new, "name"), meta(new, "namespace"));
    if !name.is_empty() && name != call.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.name
        )));
    }
    if !namespace.is_empty() && namespace != call.namespace {
        return Err(Status::bad_request(format!(
            "the namespace of the object ({namespace}) does not match the namespace on the request ({})",
            call.namespace
        )));
    }
    Ok(())
}
