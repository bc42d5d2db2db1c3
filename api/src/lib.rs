//! Kubernetes objects as values: what every part of bosun knows of the API without asking anyone.
//!
//! No I/O, no clock, no runtime. Objects are `serde_json::Value` where they must survive a round trip
//! unchanged (an API server, a patch), because typed structs drop what they do not know.

pub mod cni;
pub mod fields;
pub mod json;
pub mod labels;
pub mod meta;
pub mod names;
pub mod patch;
pub mod protobuf;
pub mod protocol;
pub mod quantity;
pub mod schema;
pub mod status;
pub mod time;
pub mod yaml;
