//! The gRPC services: each call read, handed on, and answered.

pub mod executor;
pub mod image;
pub mod info;
pub mod listen;
pub mod pieces;
pub mod runtime;
pub mod serve;
pub mod stats;

use tonic::Status;

use crate::error::Error;

/// Does `work` to its end in a task of its own, also where the caller leaves: half of it would be nobody's.
///
/// # Errors
/// What `work` fails with.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Status> {
    match tokio::spawn(work).await {
        Ok(done) => done.map_err(Status::from),
        Err(error) => Err(Status::internal(format!("the operation did not end: {error}"))),
    }
}
