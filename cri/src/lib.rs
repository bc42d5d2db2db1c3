//! The Container Runtime Interface, version v1: messages, clients and servers, generated from `proto/api.proto`
//! when the crate is built. A server method that is left out answers `Unimplemented`.

/// Package `runtime.v1` of the CRI.
#[allow(missing_docs, deprecated, clippy::all, clippy::pedantic, rust_2018_idioms)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

pub use v1::image_service_client::ImageServiceClient;
pub use v1::image_service_server::{ImageService, ImageServiceServer};
pub use v1::runtime_service_client::RuntimeServiceClient;
pub use v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
