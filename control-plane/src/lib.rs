//! The control plane: API server, store, scheduler and controllers.
//!
//! The API server keeps objects as JSON values and encodes them at the edge (JSON, YAML, protobuf). The
//! scheduler and the controllers are clients of the API like any other and may run in processes of their own.

pub mod admission;
pub mod apiserver;
pub mod authn;
pub mod authz;
pub mod client;
pub mod controller_manager;
pub mod controllers;
pub mod identity;
pub mod ports;
mod random;
pub mod registry;
pub mod request;
pub mod reviews;
pub mod scheduler;
pub mod server;
pub mod store;
pub mod stream;
pub mod token;
pub mod verbs;
pub mod watch;
