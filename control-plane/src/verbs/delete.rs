//! Delete: decide, then mark or remove.

use std::sync::Arc;

use api::status::Status;
use serde_json::{Value, json};

use super::deletion::{DeleteOptions, Verdict, decide};
use super::update::removal;
use super::{Call, meta, namespaces};
use crate::ports::Operation;
use crate::registry::storage;
use crate::server::{Server, decode, from_store, qualified};
use crate::store::{Compare, Outcome, Txn};

/// Kinds whose last state is the answer to their deletion; the others answer with a Status.
const SHOWN: &[&str] = &["pods", "services", "serviceaccounts"];

/// What a delete did.
#[derive(Debug, Clone, PartialEq)]
pub struct Deleted {
    /// The object as it is now, or was last.
    pub object: Value,
    /// Whether it is gone.
    pub gone: bool,
}

impl Deleted {
    /// The body of the answer: the object that is still there, or the Status `Success`.
    pub fn answer(&self, call: &Call) -> Value {
        if !self.gone || SHOWN.contains(&call.resource.plural) {
            return self.object.clone();
        }
        let mut details = json!({"name": meta(&self.object, "name"), "kind": call.resource.plural});
        if !call.resource.group.is_empty() {
            details["group"] = call.resource.group.into();
        }
        details["uid"] = meta(&self.object, "uid").into();
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
    }
}

impl Server {
    /// Deletes an object, or begins to.
    ///
    /// # Errors
    /// What the API answers.
    pub async fn delete_object(&self, call: &mut Call, options: &DeleteOptions) -> Result<Deleted, Status> {
        namespaces::may_delete(call)?;
        let key = storage::key(call.resource, &call.namespace, &call.name);
        let mut admitted = false;
        loop {
            let Some(entry) = self.store.get(&key).await.map_err(from_store)?.1 else {
                return Err(Status::not_found(&qualified(call.resource), &call.name));
            };
            let object = decode(call.resource, &entry)?;
            if let Some(why) = options.unmet(&object) {
                return Err(Status::conflict(&qualified(call.resource), &call.name, &why));
            }
            if !admitted {
                self.admit(call, Operation::Delete, Value::Null, Arc::new(object.clone())).await?;
                admitted = true;
            }
            if let Some(deleted) = self.try_delete(call, options, &key, object, entry.modified).await? {
                return Ok(deleted);
            }
        }
    }

    /// None where the object changed meanwhile.
    async fn try_delete(
        &self,
        call: &Call,
        options: &DeleteOptions,
        key: &str,
        object: Value,
        revision: u64,
    ) -> Result<Option<Deleted>, Status> {
        let strategy = call.resource.strategy;
        let deletion = strategy.deletion(&object, options.grace_period_seconds);
        let mut verdict = decide(&object, options, deletion, self.now());
        if verdict == Verdict::Gone && namespaces::has_content_finalizer(call, &object) {
            verdict = namespaces::terminating(&object, self.now());
        }
        let (mut after, gone, ops) = match verdict {
            Verdict::Pending => return Ok(Some(Deleted { object, gone: false })),
            Verdict::Gone => {
                let ops = removal(key, &strategy.claims(&object));
                (object, true, ops)
            }
            Verdict::Marked(mut marked) => {
                namespaces::mark(call, &mut marked);
                let ops = self.puts(call.resource, key, &marked, &[])?;
                (marked, false, ops)
            }
        };
        if call.dry_run || options.dry_run {
            return Ok(Some(Deleted { object: after, gone }));
        }
        let compares = vec![Compare::Modified(key.to_owned(), revision)];
        match self.store.txn(Txn { compares, ops }).await.map_err(from_store)? {
            Outcome::Done(revision) => {
                if !gone {
                    after["metadata"]["resourceVersion"] = revision.to_string().into();
                }
                Ok(Some(Deleted { object: after, gone }))
            }
            Outcome::Failed(_) => Ok(None),
        }
    }
}
