//! Create: decode, default, admit, prepare, allocate, validate, store.

use std::sync::Arc;

use api::status::{FieldError, Status};
use serde_json::Value;

use super::{Call, FieldValidation, meta, metadata, qualified_kind};
use crate::ports::{AdmissionRequest, Operation};
use crate::random;
use crate::registry::{Resource, storage};
use crate::server::{Server, from_store, qualified};
use crate::store::{Compare, Op, Outcome, Txn};

/// How often a generated name, or an allocated address, is chosen anew.
const ATTEMPTS: usize = 8;

/// The largest object that is stored, in bytes.
const OBJECT_LIMIT: usize = 1_572_864;

impl Server {
    /// Stores a new object and gives it back as stored.
    ///
    /// # Errors
    /// What the API answers.
    pub async fn create_object(&self, call: &mut Call, mut object: Value) -> Result<Value, Status> {
        metadata::for_create(call, &mut object, self.now())?;
        let generated = metadata::name(&mut object)?;
        call.name = meta(&object, "name").to_owned();
        self.namespace_allows(call, &call.name).await?;
        self.check_schema(call, &mut object)?;
        call.resource.strategy.default(&mut object);
        let object = self.admit(call, Operation::Create, object, Arc::new(Value::Null)).await?;
        for attempt in 1.. {
            let mut object = object.clone();
            if generated && attempt > 1 {
                let name = random::name(meta(&object, "generateName"));
                api::meta::set(&mut object, "name", name);
            }
            match self.try_create(call, object).await {
                Err(status) if attempt < ATTEMPTS && is_collision(&status, generated) => {}
                result => return result,
            }
        }
        Err(Status::internal("no attempt was left"))
    }

    async fn try_create(&self, call: &Call, mut object: Value) -> Result<Value, Status> {
        let strategy = call.resource.strategy;
        strategy.prepare_create(&mut object);
        let wanted = strategy.claims(&object);
        self.allocate(call.resource, &mut object, &[])?;
        let errors = [super::metadata::validate(call.resource, &object), strategy.validate(&object)].concat();
        self.refuse(call, &object, &errors)?;
        let name = meta(&object, "name");
        let key = storage::key(call.resource, &call.namespace, name);
        let claims = strategy.claims(&object);
        if call.dry_run {
            if self.store.contains(&key) {
                return Err(Status::already_exists(&qualified(call.resource), name));
            }
            return Ok(object);
        }
        let compares = std::iter::once(&key).cloned().chain(claims.iter().map(|c| storage::claim_key(c)));
        let txn = Txn {
            compares: compares.map(Compare::Absent).collect(),
            ops: self.puts(call.resource, &key, &object, &claims)?,
        };
        match self.store.txn(txn).await.map_err(from_store)? {
            Outcome::Done(revision) => {
                object["metadata"]["resourceVersion"] = revision.to_string().into();
                Ok(object)
            }
            Outcome::Failed(0) => Err(Status::already_exists(&qualified(call.resource), name)),
            Outcome::Failed(index) => {
                let claim = &claims[index - 1];
                match wanted.contains(claim) {
                    true => Err(self.invalid(call, &object, &[strategy.claimed(claim)])),
                    false => Err(Status::conflict(&qualified(call.resource), name, LOST_RACE)),
                }
            }
        }
    }

    /// Chooses what is left open, against the claims of all objects but those in `own`.
    pub(super) fn allocate(&self, resource: &Resource, object: &mut Value, own: &[String]) -> Result<(), Status> {
        let taken = |claim: &str| !own.iter().any(|o| o == claim) && self.store.contains(&storage::claim_key(claim));
        resource.strategy.allocate(object, &taken, random::seed())
    }

    /// The writes for an object and its claims.
    pub(super) fn puts(
        &self,
        resource: &Resource,
        key: &str,
        object: &Value,
        claims: &[String],
    ) -> Result<Vec<Op>, Status> {
        let value = storage::encode(resource, object);
        if value.len() > OBJECT_LIMIT {
            // What the original's client library says when its store refuses.
            let message = format!("etcdserver: request is too large ({} bytes, limit {OBJECT_LIMIT})", value.len());
            return Err(Status::too_large(message));
        }
        let expires = resource.expires_after.map(|after| self.now() as u64 + after.as_secs());
        let mut ops = vec![Op::Put { key: key.to_owned(), value, expires }];
        ops.extend(claims.iter().map(|claim| Op::Put {
            key: storage::claim_key(claim),
            value: bytes::Bytes::copy_from_slice(key.as_bytes()),
            expires: None,
        }));
        Ok(ops)
    }

    /// Checks fields and types, and brings values into their canonical form.
    pub(super) fn check_schema(&self, call: &mut Call, object: &mut Value) -> Result<(), Status> {
        let resource = call.resource;
        match api::schema::by_kind(resource.group, resource.version, resource.kind) {
            Some(definition) => self.check_fields(call, definition, object),
            None => Ok(()),
        }
    }

    /// The same for an object of any kind.
    pub(crate) fn check_fields(
        &self,
        call: &mut Call,
        definition: &'static api::schema::Definition,
        object: &mut Value,
    ) -> Result<(), Status> {
        let kind = definition.short_name();
        let version = api::meta::api_version(object).rsplit('/').next().unwrap_or_default().to_owned();
        let refuse = |why: &dyn std::fmt::Display| {
            Status::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}"))
        };
        let mut unknown = call.duplicates.clone();
        unknown.extend(api::schema::check(definition, object).map_err(|e| refuse(&e))?);
        match call.field_validation {
            FieldValidation::Strict if !unknown.is_empty() => {
                return Err(refuse(&format!("strict decoding error: {}", unknown.join(", "))));
            }
            FieldValidation::Warn => call.warnings.extend(unknown),
            _ => {}
        }
        api::schema::normalize(definition, object);
        Ok(())
    }

    /// Asks the admission plugins in their order.
    pub(super) async fn admit(
        &self,
        call: &mut Call,
        operation: Operation,
        object: Value,
        old: Arc<Value>,
    ) -> Result<Value, Status> {
        if self.ports.admission.is_empty() {
            return Ok(object);
        }
        let verb = match operation {
            Operation::Create => "create",
            Operation::Update => "update",
            Operation::Delete => "delete",
            Operation::Connect => "connect",
        };
        let mut request = AdmissionRequest {
            operation,
            user: call.user.clone(),
            attributes: call.attributes(verb),
            resource: call.resource,
            subresource: call.subresource,
            object,
            old,
            dry_run: call.dry_run,
            warnings: Vec::new(),
        };
        for plugin in &self.ports.admission {
            plugin.admit(self, &mut request).await?;
        }
        call.warnings.append(&mut request.warnings);
        Ok(request.object)
    }

    /// 422 where there are errors.
    pub(super) fn refuse(&self, call: &Call, object: &Value, errors: &[FieldError]) -> Result<(), Status> {
        if errors.is_empty() { Ok(()) } else { Err(self.invalid(call, object, errors)) }
    }

    fn invalid(&self, call: &Call, object: &Value, errors: &[FieldError]) -> Status {
        let name = match meta(object, "name") {
            "" => meta(object, "generateName"),
            name => name,
        };
        Status::invalid(&qualified_kind(call.resource), name, errors)
    }
}

const LOST_RACE: &str = "a value that was chosen for it was taken meanwhile; please try again";

/// Whether another attempt may go well.
fn is_collision(status: &Status, generated: bool) -> bool {
    match status.reason {
        "AlreadyExists" => generated,
        "Conflict" => status.message.ends_with(LOST_RACE),
        _ => false,
    }
}
