//! The image store: names that lead to a blob of the content store. Source: api/services/images/v1/images.proto.

use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::{
    CreateImageRequest, DeleteImageRequest, Image, ListImagesRequest, UpdateImageRequest,
};
use prost_types::FieldMask;
use tonic::transport::Channel;

use super::content::MESSAGE;
use super::{Containerd, Error, Result, request, unbounded};

impl Containerd {
    fn images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel()).max_decoding_message_size(MESSAGE)
    }

    /// All names, sorted.
    ///
    /// # Errors
    /// Where containerd fails.
    pub async fn images_list(&self) -> Result<Vec<Image>> {
        let answer = self.images().list(request(ListImagesRequest::default())).await;
        Ok(answer.map_err(Error::of("list images"))?.into_inner().images)
    }

    /// Makes `image.name` lead to `image.target`, with these labels besides those that it has.
    ///
    /// # Errors
    /// Where containerd fails, or the name is taken away again and again at the same time.
    pub async fn image_put(&self, image: Image) -> Result<()> {
        match self.image_create(image.clone()).await {
            Err(Error::AlreadyExists { .. }) => {}
            other => return other,
        }
        match self.image_update(image.clone()).await {
            // Removed between the two calls.
            Err(Error::NotFound { .. }) => self.image_create(image).await,
            other => other,
        }
    }

    async fn image_create(&self, image: Image) -> Result<()> {
        let attempt = format!("create image \"{}\"", image.name);
        let create = CreateImageRequest { image: Some(image), source_date_epoch: None };
        self.images().create(request(create)).await.map_err(Error::of(attempt))?;
        Ok(())
    }

    async fn image_update(&self, image: Image) -> Result<()> {
        let attempt = format!("update image \"{}\"", image.name);
        let labels = image.labels.keys().map(|key| format!("labels.{key}"));
        let paths = std::iter::once("target".to_owned()).chain(labels).collect();
        let update =
            UpdateImageRequest { image: Some(image), update_mask: Some(FieldMask { paths }), source_date_epoch: None };
        self.images().update(request(update)).await.map_err(Error::of(attempt))?;
        Ok(())
    }

    /// Takes a name away; none is fine. With `sync` whatever is now unused is gone from the disk when this returns.
    ///
    /// # Errors
    /// Where containerd fails.
    pub async fn image_delete(&self, name: &str, sync: bool) -> Result<()> {
        let delete = async || {
            let delete = DeleteImageRequest { name: name.to_owned(), sync, target: None };
            // A collection of garbage may take minutes: it has no deadline.
            let answer = self.images().delete(unbounded(delete)).await;
            answer.map_err(Error::of(format!("delete image \"{name}\"")))
        };
        match self.freeing(delete).await {
            Err(Error::NotFound { .. }) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
