//! The admission plugins, in upstream's order.

mod node_restriction;
mod priority;
mod service_account;
mod tolerations;

use futures::future::BoxFuture;

use api::status::Status;
use serde_json::Value;

pub use node_restriction::NodeRestriction;
pub use priority::Priority;
pub use service_account::ServiceAccount;
pub use tolerations::DefaultTolerationSeconds;

use crate::ports::{Admission, AdmissionRequest, Operation};
use crate::server::{Server, qualified};

/// All plugins, for `Ports::admission`.
pub fn plugins() -> Vec<Box<dyn Admission>> {
    vec![Box::new(ServiceAccount), Box::new(NodeRestriction), Box::new(Priority), Box::new(DefaultTolerationSeconds)]
}

/// Whether a pod itself is being created.
fn creates_pod(request: &AdmissionRequest) -> bool {
    request.operation == Operation::Create && is_resource(request, "", "pods") && request.subresource.is_none()
}

fn is_resource(request: &AdmissionRequest, group: &str, plural: &str) -> bool {
    request.resource.group == group && request.resource.plural == plural
}

/// 403 about the object of the request.
fn forbid(request: &AdmissionRequest, why: &str) -> Status {
    let name = match request.attributes.name.as_str() {
        "" => api::meta::name(&request.object),
        name => name,
    };
    Status::forbidden(&qualified(request.resource), name, why)
}

/// The list in a field, which becomes one where it is none.
fn list<'a>(object: &'a mut Value, field: &str) -> Option<&'a mut Vec<Value>> {
    let slot = object.as_object_mut()?.entry(field).or_insert(Value::Null);
    if slot.is_null() {
        *slot = Value::Array(Vec::new());
    }
    slot.as_array_mut()
}

type Admitted<'a> = BoxFuture<'a, Result<(), Status>>;

/// A plugin that decides without asking the store.
trait Pure: Send + Sync {
    fn decide(&self, request: &mut AdmissionRequest) -> Result<(), Status>;
}

impl<P: Pure> Admission for P {
    fn admit<'a>(&'a self, _server: &'a Server, request: &'a mut AdmissionRequest) -> Admitted<'a> {
        Box::pin(std::future::ready(self.decide(request)))
    }
}
