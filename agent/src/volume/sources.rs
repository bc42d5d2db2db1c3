//! What a volume of a pod is made from: one value for all the kinds that hold files written by the agent.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    ConfigMapProjection, DownwardAPIProjection, DownwardAPIVolumeFile, EmptyDirVolumeSource, KeyToPath, Pod,
    SecretProjection, ServiceAccountTokenProjection, Volume, VolumeProjection,
};

use super::error::Cause;
use super::objects::{Key, Kind};

/// The default mode of files, 0644.
const DEFAULT_MODE: i32 = 0o644;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Source {
    EmptyDir(EmptyDirVolumeSource),
    HostPath { path: String, kind: String },
    Files { plugin: &'static str, sources: Vec<FileSource>, memory: bool },
}

/// Files from one place.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum FileSource {
    Object { kind: Kind, name: String, items: Vec<KeyToPath>, optional: bool, mode: u32 },
    Downward { files: Vec<DownwardAPIVolumeFile>, mode: u32 },
    Token { projection: ServiceAccountTokenProjection, mode: u32 },
}

impl Source {
    /// The plugin's name in the volume's path.
    pub(super) fn plugin(&self) -> &'static str {
        match self {
            Self::EmptyDir(_) => "empty-dir",
            Self::HostPath { .. } => "host-path",
            Self::Files { plugin, .. } => plugin,
        }
    }

    /// The objects whose content is in the volume.
    pub(super) fn objects(&self, pod: &Pod) -> BTreeSet<Key> {
        let Self::Files { sources, .. } = self else { return BTreeSet::new() };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        sources
            .iter()
            .filter_map(|source| match source {
                FileSource::Object { kind, name, .. } => Some(Key::new(*kind, namespace, name)),
                _ => None,
            })
            .collect()
    }
}

fn mode(own: Option<i32>) -> u32 {
    u32::try_from(own.unwrap_or(DEFAULT_MODE)).unwrap_or(0) & 0o777
}

/// Reads a volume of a pod.
///
/// # Errors
/// Where it has no source, or one that this agent does not serve.
pub(super) fn parse(volume: &Volume) -> Result<Source, Cause> {
    let v = volume;
    if let Some(source) = &v.empty_dir {
        return Ok(Source::EmptyDir(source.clone()));
    }
    if let Some(source) = &v.host_path {
        return Ok(Source::HostPath { path: source.path.clone(), kind: source.type_.clone().unwrap_or_default() });
    }
    if let Some(s) = &v.config_map {
        let source = FileSource::Object {
            kind: Kind::ConfigMap,
            name: s.name.clone(),
            items: s.items.clone().unwrap_or_default(),
            optional: s.optional == Some(true),
            mode: mode(s.default_mode),
        };
        return Ok(Source::Files { plugin: "configmap", sources: vec![source], memory: false });
    }
    if let Some(s) = &v.secret {
        let source = FileSource::Object {
            kind: Kind::Secret,
            name: s.secret_name.clone().unwrap_or_default(),
            items: s.items.clone().unwrap_or_default(),
            optional: s.optional == Some(true),
            mode: mode(s.default_mode),
        };
        return Ok(Source::Files { plugin: "secret", sources: vec![source], memory: true });
    }
    if let Some(s) = &v.downward_api {
        let files = s.items.clone().unwrap_or_default();
        let source = FileSource::Downward { files, mode: mode(s.default_mode) };
        return Ok(Source::Files { plugin: "downward-api", sources: vec![source], memory: true });
    }
    if let Some(s) = &v.projected {
        let sources = s.sources.iter().flatten().map(|p| projection(p, mode(s.default_mode)));
        let sources = sources.collect::<Result<Vec<_>, _>>()?;
        return Ok(Source::Files { plugin: "projected", sources, memory: true });
    }
    Err(unsupported(v).map_or(Cause::NoSource, Cause::Unsupported))
}

fn projection(projection: &VolumeProjection, mode: u32) -> Result<FileSource, Cause> {
    let p = projection;
    if let Some(ConfigMapProjection { items, name, optional }) = &p.config_map {
        let items = items.clone().unwrap_or_default();
        return Ok(FileSource::Object {
            kind: Kind::ConfigMap,
            name: name.clone(),
            items,
            optional: *optional == Some(true),
            mode,
        });
    }
    if let Some(SecretProjection { items, name, optional }) = &p.secret {
        let items = items.clone().unwrap_or_default();
        return Ok(FileSource::Object {
            kind: Kind::Secret,
            name: name.clone(),
            items,
            optional: *optional == Some(true),
            mode,
        });
    }
    if let Some(DownwardAPIProjection { items }) = &p.downward_api {
        return Ok(FileSource::Downward { files: items.clone().unwrap_or_default(), mode });
    }
    if let Some(token) = &p.service_account_token {
        return Ok(FileSource::Token { projection: token.clone(), mode });
    }
    if p.cluster_trust_bundle.is_some() {
        return Err(Cause::Unsupported("projected clusterTrustBundle"));
    }
    if p.pod_certificate.is_some() {
        return Err(Cause::Unsupported("projected podCertificate"));
    }
    Err(Cause::NoSource)
}

/// The name of a source that the API knows and this agent does not serve.
fn unsupported(v: &Volume) -> Option<&'static str> {
    let all = [
        ("persistentVolumeClaim", v.persistent_volume_claim.is_some()),
        ("ephemeral", v.ephemeral.is_some()),
        ("csi", v.csi.is_some()),
        ("image", v.image.is_some()),
        ("nfs", v.nfs.is_some()),
        ("iscsi", v.iscsi.is_some()),
        ("fc", v.fc.is_some()),
        ("cephfs", v.cephfs.is_some()),
        ("rbd", v.rbd.is_some()),
        ("glusterfs", v.glusterfs.is_some()),
        ("gitRepo", v.git_repo.is_some()),
        ("flexVolume", v.flex_volume.is_some()),
        ("flocker", v.flocker.is_some()),
        ("cinder", v.cinder.is_some()),
        ("azureDisk", v.azure_disk.is_some()),
        ("azureFile", v.azure_file.is_some()),
        ("awsElasticBlockStore", v.aws_elastic_block_store.is_some()),
        ("gcePersistentDisk", v.gce_persistent_disk.is_some()),
        ("vsphereVolume", v.vsphere_volume.is_some()),
        ("portworxVolume", v.portworx_volume.is_some()),
        ("photonPersistentDisk", v.photon_persistent_disk.is_some()),
        ("quobyte", v.quobyte.is_some()),
        ("scaleIO", v.scale_io.is_some()),
        ("storageos", v.storageos.is_some()),
    ];
    all.into_iter().find(|(_, present)| *present).map(|(name, _)| name)
}
