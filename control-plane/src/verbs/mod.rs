//! The verbs that write, for requests and for callers in this process: create, update and patch, delete.
//!
//! Each reads, decides on values, and writes in one transaction that fails where the object changed meanwhile.

mod create;
mod delete;
mod deletion;
mod metadata;
mod namespaces;

mod subresources;
mod update;

use api::status::Status;
use serde_json::Value;

pub use delete::Deleted;
pub use deletion::{DeleteOptions, Propagation};
pub use subresources::scale;
pub use update::{Change, Patch, Updated};

use crate::identity::{Attributes, User};
use crate::registry::{Resource, Subresource};

/// What to do with fields that the schema does not know (`fieldValidation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// A write: everything but the object.
#[derive(Clone)]
pub struct Call {
    pub user: User,
    pub resource: &'static Resource,
    pub subresource: Option<Subresource>,
    pub namespace: String,
    /// Empty for a create.
    pub name: String,
    pub dry_run: bool,
    pub field_validation: FieldValidation,
    /// Fields that the body gave twice, as `duplicate field "spec.replicas"`.
    pub duplicates: Vec<String>,
    /// What the client should be told beside the answer.
    pub warnings: Vec<String>,
}

impl Call {
    /// A write by the API server itself.
    pub fn internal(resource: &'static Resource, namespace: &str, name: &str) -> Self {
        Self {
            user: User {
                name: "system:apiserver".into(),
                groups: vec!["system:masters".into(), "system:authenticated".into()],
                ..User::default()
            },
            resource,
            subresource: None,
            namespace: namespace.into(),
            name: name.into(),
            dry_run: false,
            field_validation: FieldValidation::Ignore,
            duplicates: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// What a create and an update make of an object without store, clock and admission, for whoever throws objects at it:
    /// the object as it would be stored.
    ///
    /// # Errors
    /// What the API answers.
    pub fn rehearse(&self, mut object: Value) -> Result<Value, Status> {
        let Resource { group, version, kind, strategy, .. } = *self.resource;
        metadata::for_create(self, &mut object, 0)?;
        metadata::name(&mut object)?;
        if let Some(definition) = api::schema::by_kind(group, version, kind) {
            api::schema::check(definition, &object).map_err(|error| Status::bad_request(error.to_string()))?;
            api::schema::normalize(definition, &mut object);
        }
        strategy.default(&mut object);
        let old = object.clone();
        strategy.prepare_create(&mut object);
        strategy.allocate(&mut object, &|_| false, 1)?;
        let mut errors = [metadata::validate(self.resource, &object), strategy.validate(&object)].concat();
        strategy.prepare_update(&mut object, &old);
        errors.extend(metadata::validate_update(&object, &old));
        errors.extend(strategy.validate_update(&object, &old));
        match errors.is_empty() {
            true => Ok(object),
            false => Err(Status::invalid(kind, &self.name, &errors)),
        }
    }

    pub(crate) fn attributes(&self, verb: &str) -> Attributes {
        Attributes {
            verb: verb.into(),
            group: self.resource.group.into(),
            version: self.resource.version.into(),
            resource: self.resource.plural.into(),
            subresource: self.subresource.map_or(String::new(), |s| s.path().into()),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            path: String::new(),
        }
    }
}

/// `Pod` or `Deployment.apps`, as messages name a kind.
pub(crate) fn qualified_kind(resource: &Resource) -> String {
    match resource.group {
        "" => resource.kind.to_owned(),
        group => format!("{}.{group}", resource.kind),
    }
}

/// A string of the metadata, empty where there is none.
pub(crate) fn meta<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}
