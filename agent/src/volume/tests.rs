mod live;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use serde_json::{Value, json};

use super::objects::Content;
use super::payload::{Choice, project};
use super::*;

fn pod(spec: Value) -> Arc<Pod> {
    let metadata = json!({"name": "p", "namespace": "ns", "uid": "u1", "labels": {"a": "1"}});
    Arc::new(serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap())
}

/// Volumes in a scratch folder, with a client that reaches nobody.
fn volumes(name: &str) -> (Volumes, PathBuf) {
    lifecycle::install_crypto();
    let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
    with_client(name, kube::Client::try_from(config).unwrap())
}

fn with_client(name: &str, client: kube::Client) -> (Volumes, PathBuf) {
    let root = std::env::temp_dir().join(format!("volumes-agent-{name}-{}", std::process::id()));
    let node = NodeCapacity { milli_cpu: 1000, memory: 1 << 30, ephemeral_storage: 0 };
    (Volumes::new(&root, client, node), root)
}

#[test]
fn chosen_keys_go_to_their_paths_and_missing_ones_say_so() {
    let mut content = Content::default();
    content.data.insert("k".into(), "v".into());
    let items = |list: Value| serde_json::from_value::<Vec<_>>(list).unwrap();
    let choice = |optional| Choice { optional, mode: 0o644 };
    let chosen = items(json!([{"key": "k", "path": "a/b", "mode": 256}]));
    let payload = project(&content, Kind::ConfigMap, &chosen, choice(false)).unwrap();
    assert_eq!((payload["a/b"].mode, &*payload["a/b"].data), (0o400, b"v".as_slice()));
    let missing = items(json!([{"key": "x", "path": "x"}]));
    let error = |kind| project(&content, kind, &missing, choice(false)).unwrap_err().to_string();
    assert_eq!(error(Kind::ConfigMap), "configmap references non-existent config key: x");
    assert_eq!(error(Kind::Secret), "references non-existent secret key: x");
    assert!(project(&content, Kind::Secret, &missing, choice(true)).unwrap().is_empty());
    let climbing = items(json!([{"key": "k", "path": "a/../../b"}]));
    assert!(project(&content, Kind::Secret, &climbing, choice(false)).is_err());
}

#[test]
fn a_missing_object_reads_as_the_kubelets_event() {
    let cause = ObjectError::NotFound { kind: Kind::ConfigMap, name: "y".into() }.into();
    let error = VolumeError { volume: "x".into(), cause };
    assert_eq!(error.to_string(), "MountVolume.SetUp failed for volume \"x\" : configmap \"y\" not found");
}

/// The thread has a mount namespace of its own, and so do the blocking threads it starts.
fn in_own_namespace(work: impl Future<Output = ()> + Send + 'static) {
    let thread = std::thread::spawn(move || {
        if let Err(e) = kernel::mount::own_namespace() {
            return eprintln!("skipped: {e}");
        }
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
    });
    thread.join().unwrap();
}

#[test]
fn volumes_are_made_mounted_and_removed() {
    in_own_namespace(async {
        let (volumes, root) = volumes("life");
        let pod = pod(json!({
            "securityContext": {"fsGroup": 4000},
            "volumes": [
                {"name": "disk", "emptyDir": {}},
                {"name": "mem", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
                {"name": "info", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
                {"name": "host", "hostPath": {"path": "/etc"}},
                {"name": "claim", "persistentVolumeClaim": {"claimName": "c"}},
                {"name": "unused", "csi": {"driver": "d"}},
            ],
            "containers": [{"name": "c", "volumeMounts": [
                {"name": "disk", "mountPath": "/d", "subPath": "x/y"},
                {"name": "mem", "mountPath": "/m"},
                {"name": "info", "mountPath": "/i", "subPathExpr": "$(WHICH)", "readOnly": true},
                {"name": "host", "mountPath": "/h"},
                {"name": "claim", "mountPath": "/c"},
            ]}],
        }));
        let errors = volumes.setup(&pod).await.unwrap_err();
        let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
        let claim = "MountVolume.SetUp failed for volume \"claim\" : volume type persistentVolumeClaim is not supported by this node";
        assert_eq!(texts, [claim]);
        assert!(volumes.setup(&pod).await.is_err());
        let base = root.join("pods/u1/volumes");
        assert!(kernel::mount::space(&base.join("kubernetes.io~empty-dir/mem")).unwrap().capacity <= 1 << 20);
        let info = base.join("kubernetes.io~downward-api/info");
        assert!(kernel::mount::is_mount_point(&info).unwrap());
        assert_eq!(fs::read_to_string(info.join("labels")).unwrap(), "a=\"1\"");

        let mounts = &pod.spec.as_ref().unwrap().containers[0].volume_mounts.as_ref().unwrap()[..4];
        let environment = BTreeMap::from([("WHICH".to_owned(), "labels".to_owned())]);
        let support = Support::default();
        let request = MountRequest { pod: &pod, container: "c", mounts, environment: &environment, support };
        let made = volumes.container_mounts(request).await.unwrap();
        assert_eq!(made[0].host_path, root.join("pods/u1/volume-subpaths/disk/c/0").to_str().unwrap());
        let made_dir = fs::metadata(base.join("kubernetes.io~empty-dir/disk/x/y")).unwrap();
        assert_eq!((made_dir.gid(), made_dir.mode() & 0o7777), (4000, 0o2777));
        assert_eq!(fs::read_to_string(&made[2].host_path).unwrap(), "a=\"1\"");
        assert!(made[2].readonly && made[2].selinux_relabel && !made[3].selinux_relabel);
        // Once more, as for the container's next attempt.
        volumes.container_mounts(request).await.unwrap();

        // A container put a link to the host in place of its folder.
        fs::remove_dir(base.join("kubernetes.io~empty-dir/disk/x/y")).unwrap();
        symlink("/etc", base.join("kubernetes.io~empty-dir/disk/x/y")).unwrap();
        let error = volumes.container_mounts(request).await.unwrap_err().to_string();
        assert!(error.starts_with("failed to prepare subPath for volumeMount \"disk\" of container \"c\""), "{error}");

        volumes.teardown("u1").await.unwrap();
        volumes.teardown("u1").await.unwrap();
        assert!(!base.exists() && Path::new("/etc/passwd").exists() && root.join("pods/u1").exists());
        assert!(!kernel::mount::mounts().unwrap().iter().any(|m| m.mount_point.starts_with(&root)));
        assert_eq!(volumes.on_disk(), ["u1"]);
        volumes.remove_pod_dir("u1").await.unwrap();
        assert!(volumes.on_disk().is_empty() && !volumes.knows("u1"));
        fs::remove_dir_all(root).unwrap();
    });
}

#[test]
fn sub_paths_stay_relative_and_need_their_variables() {
    let wanted = |mount: Value, environment: &[(&str, &str)]| {
        let mount = serde_json::from_value(mount).unwrap();
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        subpath::wanted(&mount, &environment).map_err(|e| e.to_string())
    };
    let with = |key: &str, value: &str| json!({"name": "v", "mountPath": "/m", key: value});
    assert_eq!(wanted(with("subPath", "a/./b"), &[]), Ok("a/b".into()));
    assert_eq!(wanted(with("subPathExpr", "$(A)/$$x"), &[("A", "b")]), Ok("b/$x".into()));
    assert!(wanted(with("subPathExpr", "$(A)"), &[]).is_err());
    let climbing = Err("unable to provision SubPath `../b`: must not contain '..'".to_owned());
    assert_eq!(wanted(with("subPathExpr", "$(A)"), &[("A", "../b")]), climbing);
    assert_eq!(wanted(with("subPath", "/a"), &[]), Err("error SubPath `/a` must not be an absolute path".into()));
}
