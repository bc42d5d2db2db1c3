//! The CRI's ImageService. Source: k8s.io/cri-api, runtime/v1/api.proto.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use cri::v1;
use futures::stream::{self, StreamExt};
use serde_json::json;
use tonic::codegen::BoxStream;
use tonic::{Code, Request, Response, Status};

use crate::image::{Auth, FsUsage, Image, Images, User};

/// Images in one message of a stream.
const PART: usize = 100;

/// Serves images.
pub struct ImageServer {
    images: Images,
    /// Runtime handlers that are known; the empty one always is.
    handlers: Arc<[String]>,
}

impl ImageServer {
    /// `handlers` are the names that a pull may be for.
    pub fn new(images: Images, handlers: impl IntoIterator<Item = String>) -> Self {
        Self { images, handlers: handlers.into_iter().collect() }
    }

    async fn listed(&self, filter: Option<v1::ImageFilter>) -> Result<Vec<v1::Image>, Status> {
        let wanted = filter.and_then(|filter| filter.image).map(|spec| spec.image).filter(|name| !name.is_empty());
        let images = match wanted {
            Some(wanted) => self.images.find(&wanted).await?.into_iter().collect(),
            None => self.images.list().await?.into_values().collect::<Vec<_>>(),
        };
        Ok(images.iter().map(shown).collect())
    }
}

#[tonic::async_trait]
impl cri::ImageService for ImageServer {
    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        let images = self.listed(request.into_inner().filter).await?;
        Ok(Response::new(v1::ListImagesResponse { images }))
    }

    async fn stream_images(
        &self,
        request: Request<v1::StreamImagesRequest>,
    ) -> Result<Response<BoxStream<v1::StreamImagesResponse>>, Status> {
        let images = self.listed(request.into_inner().filter).await?;
        let parts: Vec<_> =
            images.chunks(PART).map(|part| v1::StreamImagesResponse { images: part.to_vec() }).collect();
        Ok(Response::new(stream::iter(parts).map(Ok).boxed()))
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Result<Response<v1::ImageStatusResponse>, Status> {
        let request = request.into_inner();
        let image = self.images.find(&wanted(request.image)?).await?;
        let info = image.as_ref().filter(|_| request.verbose).map(details).unwrap_or_default();
        Ok(Response::new(v1::ImageStatusResponse { image: image.as_ref().map(shown), info }))
    }

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Result<Response<v1::PullImageResponse>, Status> {
        let request = request.into_inner();
        let handler = request.image.as_ref().map(|spec| spec.runtime_handler.clone()).unwrap_or_default();
        if !handler.is_empty() && !self.handlers.contains(&handler) {
            let known = self.handlers.join(", ");
            let why = format!("cannot pull for runtime handler \"{handler}\": it is not configured; known are {known}");
            return Err(Status::new(Code::InvalidArgument, why));
        }
        let reference = wanted(request.image)?;
        let image = self.images.pull(&reference, request.auth.map(auth)).await?;
        Ok(Response::new(v1::PullImageResponse { image_ref: image.id }))
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        self.images.remove(&wanted(request.into_inner().image)?).await?;
        Ok(Response::new(v1::RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _: Request<v1::ImageFsInfoRequest>,
    ) -> Result<Response<v1::ImageFsInfoResponse>, Status> {
        let usage = usage(self.images.fs_usage().await?);
        Ok(Response::new(v1::ImageFsInfoResponse {
            image_filesystems: vec![usage.clone()],
            container_filesystems: vec![usage],
        }))
    }
}

fn wanted(spec: Option<v1::ImageSpec>) -> Result<String, Status> {
    let name = spec.map(|spec| spec.image).unwrap_or_default();
    if name.is_empty() { Err(Status::invalid_argument("the request names no image")) } else { Ok(name) }
}

fn auth(auth: v1::AuthConfig) -> Auth {
    Auth {
        username: auth.username,
        password: auth.password,
        auth: auth.auth,
        server_address: auth.server_address,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
    }
}

/// An image as the CRI has it.
pub fn shown(image: &Image) -> v1::Image {
    let (uid, username) = match &image.user {
        User::Unset => (None, String::new()),
        User::Id(value) => (Some(v1::Int64Value { value: *value }), String::new()),
        User::Name(name) => (None, name.clone()),
    };
    v1::Image {
        id: image.id.clone(),
        repo_tags: image.tags.clone(),
        repo_digests: image.digests.clone(),
        size: image.size,
        uid,
        username,
        spec: None,
        pinned: image.pinned,
    }
}

/// What a verbose status adds, as containerd's plugin writes it.
fn details(image: &Image) -> HashMap<String, String> {
    let info = json!({ "chainID": image.chain_id, "imageSpec": &*image.config });
    HashMap::from([("info".to_owned(), info.to_string())])
}

fn usage(usage: FsUsage) -> v1::FilesystemUsage {
    let mountpoint = usage.mount_point.to_string_lossy().into_owned();
    v1::FilesystemUsage {
        timestamp: nanoseconds(usage.at),
        fs_id: Some(v1::FilesystemIdentifier { mountpoint }),
        used_bytes: Some(v1::UInt64Value { value: usage.bytes }),
        inodes_used: Some(v1::UInt64Value { value: usage.inodes }),
    }
}

fn nanoseconds(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::manifest::Descriptor;
    use std::path::PathBuf;
    use std::time::Duration;

    fn image(user: User) -> Image {
        Image {
            id: "sha256:1".to_owned(),
            tags: vec!["a.b/c:1".to_owned()],
            digests: vec!["a.b/c@sha256:2".to_owned()],
            size: 7,
            config: Arc::default(),
            chain_id: "sha256:3".to_owned(),
            target: Descriptor::new("", b""),
            user,
            pinned: true,
            labels: HashMap::new(),
        }
    }

    #[test]
    fn an_image_is_shown_with_its_user_in_one_of_two_fields() {
        let by_id = shown(&image(User::Id(1002)));
        assert_eq!((by_id.uid, by_id.username.as_str()), (Some(v1::Int64Value { value: 1002 }), ""));
        let by_name = shown(&image(User::Name("www".to_owned())));
        assert_eq!((by_name.uid, by_name.username.as_str()), (None, "www"));
        let unset = shown(&image(User::Unset));
        assert_eq!((unset.id.as_str(), unset.size, unset.pinned), ("sha256:1", 7, true));
        assert_eq!((unset.repo_tags, unset.repo_digests), (image(User::Unset).tags, image(User::Unset).digests));
        let details = details(&image(User::Unset));
        let info: serde_json::Value = serde_json::from_str(&details["info"]).unwrap();
        assert_eq!(info["chainID"], "sha256:3");
    }

    #[test]
    fn usage_is_told_in_nanoseconds_and_bytes() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(5);
        let told = usage(FsUsage { mount_point: PathBuf::from("/a"), bytes: 1, inodes: 2, at });
        assert_eq!(
            (told.timestamp, told.used_bytes, told.inodes_used),
            (5, Some(v1::UInt64Value { value: 1 }), Some(v1::UInt64Value { value: 2 }))
        );
        assert_eq!(told.fs_id, Some(v1::FilesystemIdentifier { mountpoint: "/a".to_owned() }));
    }

    #[test]
    fn a_request_must_name_an_image() {
        assert_eq!(wanted(None).unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(wanted(Some(v1::ImageSpec { image: "x".to_owned(), ..v1::ImageSpec::default() })).unwrap(), "x");
    }
}
