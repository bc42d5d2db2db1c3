//! What the API server asks of its neighbours, as traits. `apiserver::run` wires the real ones in.
//!
//! | trait | implemented in |
//! |---|---|
//! | `Authenticator` | `authn` (certificates, bearer tokens) |
//! | `Authorizer` | `authz` |
//! | `Admission` | `admission` |
//! | `Connector` | `stream` (log, exec, attach, portforward, proxy) |
//! | `Answerer` | `token`, `reviews` |
//!
//! Each is handed the `Server`, so that none needs to hold it.

use std::net::SocketAddr;
use std::sync::Arc;

use api::status::Status;
use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::combinators::UnsyncBoxBody;
use rustls::pki_types::CertificateDer;
use serde_json::Value;

use crate::identity::{Attributes, User};
use crate::registry::{Resource, Subresource};
use crate::server::Server;

/// Why a body broke off.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a request or an answer.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// The other end of a connection. In the extensions of every request that came over TLS.
#[derive(Debug, Clone)]
pub struct Peer {
    pub address: SocketAddr,
    /// What the client showed and the handshake verified against the client CA, leaf first; empty where it showed none.
    pub certificates: Arc<[CertificateDer<'static>]>,
}

/// Finds out who asks.
pub trait Authenticator: Send + Sync {
    /// None where the request carries no credential.
    ///
    /// # Errors
    /// `Status::unauthorized` where it carries one that does not hold.
    fn authenticate<'a>(
        &'a self,
        server: &'a Server,
        request: &'a http::request::Parts,
        peer: Option<&'a Peer>,
    ) -> BoxFuture<'a, Result<Option<User>, Status>>;
}

/// What an authorizer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// With the reason for the audit log and for SubjectAccessReviews.
    Allow(String),
    Deny(String),
}

/// Judges who may do what.
pub trait Authorizer: Send + Sync {
    fn authorize<'a>(
        &'a self,
        server: &'a Server,
        user: &'a User,
        attributes: &'a Attributes,
    ) -> BoxFuture<'a, Decision>;
}

/// What a write is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

/// A write on its way to the store.
pub struct AdmissionRequest {
    pub operation: Operation,
    pub user: User,
    /// The namespace and name are here too.
    pub attributes: Attributes,
    pub resource: &'static Resource,
    pub subresource: Option<Subresource>,
    /// What will be stored; null for a delete. May be changed.
    pub object: Value,
    /// What is stored now; null for a create.
    pub old: Arc<Value>,
    pub dry_run: bool,
    /// Go to the client as `Warning` headers.
    pub warnings: Vec<String>,
}

/// Changes or refuses a write, after authorization and before validation.
pub trait Admission: Send + Sync {
    /// # Errors
    /// The refusal, as the client will see it.
    fn admit<'a>(&'a self, server: &'a Server, request: &'a mut AdmissionRequest) -> BoxFuture<'a, Result<(), Status>>;
}

/// A request to a connect subresource. Already authorized (a GET that upgrades to WebSocket for exec, attach or
/// portforward needs `create`).
pub struct ConnectRequest {
    pub user: User,
    pub resource: &'static Resource,
    pub subresource: Subresource,
    pub namespace: String,
    pub name: String,
    /// For `proxy`: what follows in the path, without the leading slash.
    pub rest: String,
    /// The whole request; `hyper::upgrade::on` works on it.
    pub request: http::Request<Body>,
}

/// Serves `log`, `exec`, `attach`, `portforward` and `proxy`.
pub trait Connector: Send + Sync {
    /// # Errors
    /// What is answered in place of a stream.
    fn connect<'a>(
        &'a self,
        server: &'a Arc<Server>,
        request: ConnectRequest,
    ) -> BoxFuture<'a, Result<http::Response<Body>, Status>>;
}

/// A create whose answer is computed: `serviceaccounts/token` and the reviews.
pub struct Question {
    pub user: User,
    pub resource: &'static Resource,
    /// `Token`, or none for a kind that is `virtual_only`.
    pub subresource: Option<Subresource>,
    pub namespace: String,
    pub name: String,
    /// Decoded, defaulted and validated.
    pub object: Value,
    pub dry_run: bool,
}

/// Answers a `Question`; decoding and encoding is done around it.
pub trait Answerer: Send + Sync {
    /// # Errors
    /// What is answered in place of the object.
    fn answer<'a>(&'a self, server: &'a Server, question: Question) -> BoxFuture<'a, Result<Value, Status>>;

    /// What is published at a path beside the API, with its content type: how to check tokens.
    fn published(&self, _server: &Server, _path: &str) -> Option<(&'static str, Value)> {
        None
    }
}

/// All neighbours of a server.
pub struct Ports {
    pub authenticator: Box<dyn Authenticator>,
    pub authorizer: Box<dyn Authorizer>,
    /// Asked in this order.
    pub admission: Vec<Box<dyn Admission>>,
    pub connector: Box<dyn Connector>,
    pub answerer: Box<dyn Answerer>,
}
