//! Containers of containerd: the objects in which our records lie. They have no process; a task has.
//! Source: containerd, api/services/containers/v1.

use containerd_client::services::v1::container::Runtime;
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::{
    Container, CreateContainerRequest, DeleteContainerRequest, GetContainerRequest, ListContainersRequest,
    UpdateContainerRequest,
};
use prost_types::{Any, FieldMask};
use tonic::transport::Channel;

use super::{Containerd, Error, MAX_MESSAGE, Result, request, unbounded};

impl Containerd {
    fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// # Errors
    /// `AlreadyExists` for an id that is taken.
    pub async fn create_container(&self, container: Container) -> Result<()> {
        let attempt = format!("create container {}", container.id);
        let message = CreateContainerRequest { container: Some(container) };
        self.containers().create(request(message)).await.map(drop).map_err(Error::of(attempt))
    }

    /// # Errors
    /// `NotFound` for an unknown id.
    pub async fn container(&self, id: &str) -> Result<Container> {
        let attempt = format!("load container {id}");
        let answer = self.containers().get(request(GetContainerRequest { id: id.to_owned() })).await;
        let container = answer.map_err(Error::of(attempt.clone()))?.into_inner().container;
        container.ok_or(Error::Other { attempt, message: "containerd answered without it".to_owned() })
    }

    /// All containers of our namespace, one message each: a node's worth of specs does not fit into one.
    ///
    /// # Errors
    /// What containerd said.
    pub async fn list_containers(&self) -> Result<Vec<Container>> {
        let failed = || Error::of("list containers");
        let message = ListContainersRequest::default();
        let mut stream = self.containers().list_stream(unbounded(message)).await.map_err(failed())?.into_inner();
        let mut all = Vec::new();
        while let Some(one) = stream.message().await.map_err(failed())? {
            all.extend(one.container);
        }
        Ok(all)
    }

    /// Replaces the named fields (`spec`, `labels`, `extensions`) by those of `container`.
    ///
    /// # Errors
    /// `NotFound` for an unknown id.
    pub async fn update_container(&self, container: Container, fields: &[&str]) -> Result<()> {
        let attempt = format!("update container {}", container.id);
        let paths = fields.iter().map(|&field| field.to_owned()).collect();
        let message = UpdateContainerRequest { container: Some(container), update_mask: Some(FieldMask { paths }) };
        self.containers().update(request(message)).await.map(drop).map_err(Error::of(attempt))
    }

    /// Nothing there is success.
    ///
    /// # Errors
    /// What containerd said.
    pub async fn delete_container(&self, id: &str) -> Result<()> {
        let delete = async || {
            let answer = self.containers().delete(request(DeleteContainerRequest { id: id.to_owned() })).await;
            answer.map(drop).map_err(Error::of(format!("delete container {id}")))
        };
        match self.freeing(delete).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }
}

/// A runtime as a container names it.
pub fn runtime(name: &str, options: Option<Any>) -> Option<Runtime> {
    Some(Runtime { name: name.to_owned(), options })
}
