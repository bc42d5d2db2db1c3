use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::{Map, json};

use super::*;
use crate::schema::{Field, SchemaOr, Type};

/// `kubectl create namespace a`, as kubectl 1.37 sends it.
const NAMESPACE: &[u8] =
    b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09Namespace\x12\x19\x0a\x11\x0a\x01a\x12\0\x1a\0\"\0*\x002\x008\0B\0\x12\0\
      \x1a\x02\x0a\0\x1a\0\"\0";
/// `kubectl create deployment web --image=nginx:1 --replicas=2 --port=80`.
const DEPLOYMENT: &[u8] =
    b"k8s\0\x0a\x15\x0a\x07apps/v1\x12\x0aDeployment\x12\xba\x01\x0a\x1f\x0a\x03web\x12\0\x1a\0\"\0*\x002\x008\
      \0B\0Z\x0a\x0a\x03app\x12\x03web\x12\x88\x01\x08\x02\x12\x0c\x0a\x0a\x0a\x03app\x12\x03web\x1an\x0a\
      \x1c\x0a\0\x12\0\x1a\0\"\0*\x002\x008\0B\0Z\x0a\x0a\x03app\x12\x03web\x12N\x120\x0a\x05nginx\x12\x07ngin\
      x:1*\x002\x0a\x0a\0\x10\0\x18P\"\0*\0B\0j\0r\0\x80\x01\0\x88\x01\0\x90\x01\0\xa2\x01\0\x1a\x002\0B\0J\0R\
      \0X\0`\0h\0\x82\x01\0\x8a\x01\0\x9a\x01\0\xc2\x01\0\"\x02\x0a\0(\x008\0\x1a\x0c\x08\0\x10\0\x18\0 \0(\
      \x008\0\x1a\0\"\0";
/// `kubectl create service nodeport s --tcp=80:8080`.
const SERVICE: &[u8] =
    b"k8s\0\x0a\x0d\x0a\x02v1\x12\x07Service\x12b\x0a\x1b\x0a\x01s\x12\0\x1a\0\"\0*\x002\x008\0B\0Z\x08\x0a\
      \x03app\x12\x01s\x12?\x0a\x1b\x0a\x0780-8080\x12\x03TCP\x18P\"\x07\x08\0\x10\x90?\x1a\0(\0\x12\x08\
      \x0a\x03app\x12\x01s\x1a\0\"\x08NodePort:\0B\0R\0Z\0`\0h\0\x1a\x02\x0a\0\x1a\0\"\0";
/// `kubectl create token default`.
const TOKEN_REQUEST: &[u8] =
    b"k8s\0\x0a(\x0a\x18authentication.k8s.io/v1\x12\x0cTokenRequest\x12\x1a\x0a\x10\x0a\0\x12\0\x1a\0\"\0\
      *\x002\x008\0B\0\x12\0\x1a\x04\x0a\0\x12\0\x1a\0\"\0";

#[test]
fn bodies_as_kubectl_sends_them() {
    let labels = json!({"app": "web"});
    let container = json!({"name": "nginx", "image": "nginx:1", "ports": [{"containerPort": 80}], "resources": {}});
    for (bytes, want) in [
        (
            NAMESPACE,
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}, "spec": {}, "status": {}}),
        ),
        (
            DEPLOYMENT,
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": labels},
                "spec": {"replicas": 2, "selector": {"matchLabels": labels}, "strategy": {},
                    "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}}},
                "status": {}}),
        ),
        (
            SERVICE,
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "labels": {"app": "s"}},
                "spec": {"ports": [{"name": "80-8080", "port": 80, "protocol": "TCP", "targetPort": 8080}],
                    "selector": {"app": "s"}, "type": "NodePort"},
                "status": {"loadBalancer": {}}}),
        ),
        (
            TOKEN_REQUEST,
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {},
                "spec": {"audiences": null, "expirationSeconds": null}, "status": {"token": "", "expirationTimestamp": null}}),
        ),
    ] {
        let mut want = want;
        drop_nulls(&mut want);
        assert_eq!(decode(bytes), Ok(want.clone()));
        assert_eq!(decode(&encode(&want).expect("encodes")), Ok(want));
    }
}

fn drop_nulls(value: &mut Value) {
    if let Value::Object(entries) = value {
        entries.retain(|_, entry| !entry.is_null());
        entries.values_mut().for_each(drop_nulls);
    }
}

#[test]
fn zero_is_shown_where_go_shows_it() {
    let object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"},
        "spec": {"replicas": 0, "minReadySeconds": 0, "paused": false, "selector": {},
            "template": {"spec": {"hostNetwork": false, "containers": [{"name": ""}]}}}});
    let shown = decode(&encode(&object).expect("encodes")).expect("decodes");
    assert_eq!(
        shown["spec"],
        json!({"replicas": 0, "selector": {}, "template": {"spec": {"containers": [{"name": ""}]}}})
    );
}

#[test]
fn scalars_have_their_json_forms() {
    let object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "a", "creationTimestamp": "2026-01-02T03:04:05Z", "labels": {"b": "c", "a": ""},
            "managedFields": [{"fieldsV1": {"f:metadata": {}}}]},
        "spec": {
            "containers": [{
                "name": "c", "command": ["a", ""],
                "ports": [{"containerPort": 80, "hostPort": 8080}],
                "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}},
                "livenessProbe": {"httpGet": {"port": "http"}, "periodSeconds": 3},
                "readinessProbe": {"tcpSocket": {"port": 80}},
                "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k", "optional": false}}}],
            }],
            "ephemeralContainers": [{"name": "e", "image": "i", "targetContainerName": "c"}],
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "configMap": {"name": "m", "defaultMode": 420}}],
            "tolerations": [{"tolerationSeconds": -1}],
        },
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastProbeTime": null}]},
    });
    let mut want = object.clone();
    want["status"]["conditions"][0].as_object_mut().expect("object").shift_remove("lastProbeTime");
    assert_eq!(decode(&encode(&object).expect("encodes")).expect("decodes"), want);
}

#[test]
fn micro_times_bytes_and_extras() {
    for object in [
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {},
            "spec": {"renewTime": "2026-01-02T03:04:05.000600Z", "leaseDurationSeconds": 40}}),
        json!({"apiVersion": "v1", "kind": "Secret", "data": {"k": "AAEC/w=="}, "type": "Opaque"}),
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": "t"},
            "status": {"user": {"username": "u", "extra": {"a": ["b", "c"]}}}}),
        json!({"apiVersion": "policy/v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0,
            "preconditions": {"uid": "u"}, "propagationPolicy": "Background", "dryRun": ["All"]}),
        json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "code": 404,
            "details": {"name": "a", "causes": [{"field": "f"}]}}),
        json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "data": {"a": [1, {"b": null}]}, "revision": 3}),
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "spec": {"versions": [
            {"name": "v1", "served": true, "storage": false, "schema": {"openAPIV3Schema": {
                "items": {"type": "string"}, "additionalProperties": true, "default": [1],
                "properties": {"a": {"additionalProperties": {"type": "integer"}}}}}}],
            "group": "", "scope": "", "names": {"kind": "A", "plural": ""}}}),
    ] {
        let bytes = encode(&object).expect("encodes");
        assert_eq!(decode(&bytes).expect("decodes"), object);
    }
}

/// A field shows no more of a time than its form does: what is less than a second after 1970 began, and less than a
/// microsecond, is no time, and would not come back as the time that it was.
#[test]
fn a_time_that_its_form_does_not_show_is_none() {
    let pod = schema::by_kind("", "v1", "Pod").expect("known");
    let created = |nanos: u8| [0x0a, 4, 0x42, 2, 0x10, nanos];
    assert_eq!(json!(decode_message(pod, &created(5)).expect("decodes")), json!({"metadata": {}}));
    let lease = schema::by_kind("coordination.k8s.io", "v1", "Lease").expect("known");
    let renewed = |nanos: u16| [0x12, 5, 0x22, 3, 0x10, (nanos & 0x7f) as u8 | 0x80, (nanos >> 7) as u8];
    assert_eq!(json!(decode_message(lease, &renewed(999)).expect("decodes")), json!({"spec": {}}));
    let shown = json!({"spec": {"renewTime": "1970-01-01T00:00:00.000001Z"}});
    assert_eq!(json!(decode_message(lease, &renewed(1000)).expect("decodes")), shown);
}

#[test]
fn lists_and_watch_frames() {
    let pod = json!({"metadata": {"name": "a"}});
    let raw = encode_message(schema::by_kind("", "v1", "Pod").expect("known"), &pod).expect("encodes");
    let meta = json!({"resourceVersion": "7"});
    let list = encode_list("v1", "PodList", &meta, [raw.as_slice(), &raw].into_iter()).expect("encodes");
    assert_eq!(
        decode(&list).expect("decodes"),
        json!({"apiVersion": "v1", "kind": "PodList", "metadata": meta, "items": [pod, pod]})
    );
    assert_eq!(watch_event_frame("ADDED", b"xy"), b"\0\0\0\x0d\x0a\x05ADDED\x12\x04\x0a\x02xy");
}

#[test]
fn garbage_is_refused_in_words() {
    assert_eq!(decode(b"{}"), Err(Error::NoMagic));
    let unknown = seal("v1", "Nonsense", b"");
    assert_eq!(
        decode(&unknown).map_err(|e| e.to_string()),
        Err("no kind \"Nonsense\" is registered for version \"v1\"".into())
    );
    assert_eq!(decode(&NAMESPACE[..NAMESPACE.len() - 12]), Err(Error::Truncated("Unknown")));
    // 101 levels of JSONSchemaProps.not
    let mut nested = Vec::new();
    for _ in 0..150 {
        let mut outer = Vec::new();
        wire::put_bytes(&mut outer, 28, &nested);
        nested = outer;
    }
    let props = schema::by_name("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps");
    let tag = props.and_then(|p| p.field("not")).expect("known").tag;
    assert_eq!(tag, 28);
    assert_eq!(decode_message(props.expect("known"), &nested), Err(Error::TooDeep));
}

/// A value of this type, at most `depth` objects deep, that Go would show in full.
fn value(ty: Type, depth: u32) -> BoxedStrategy<Value> {
    match ty {
        Type::String => "[a-z]{1,5}".prop_map(Value::from).boxed(),
        Type::Int32 => prop_oneof![1..i32::MAX, i32::MIN..0].prop_map(Value::from).boxed(),
        Type::Int64 => prop_oneof![1..i64::MAX, i64::MIN..0].prop_map(Value::from).boxed(),
        Type::Double => (1..1000_i32).prop_map(|n| Value::from(f64::from(n) / 8.0)).boxed(),
        Type::Boolean => Just(Value::Bool(true)).boxed(),
        Type::Bytes => prop::collection::vec(any::<u8>(), 1..5).prop_map(|b| STANDARD.encode(b).into()).boxed(),
        Type::Time => (1..4_000_000_000_i64).prop_map(|s| crate::time::format(s).into()).boxed(),
        Type::MicroTime => {
            (1..4_000_000_000_i64, 0..999_999_u32).prop_map(|(s, m)| crate::time::format_micro(s, m).into()).boxed()
        }
        Type::Quantity => (1..5000_i64).prop_map(|m| crate::quantity::Quantity::of_milli(m).to_string().into()).boxed(),
        Type::IntOrString => prop_oneof![(0..9).prop_map(Value::from), "[a-z]{1,3}".prop_map(Value::from)].boxed(),
        Type::RawExtension | Type::FieldsV1 | Type::Json => "[a-z]{1,3}".prop_map(|k| json!({ k: [1, null] })).boxed(),
        Type::StringList => prop::collection::vec("[a-z]{0,3}", 1..3).prop_map(Value::from).boxed(),
        Type::Array(inner) => prop::collection::vec(value(*inner, depth), 1..3).prop_map(Value::Array).boxed(),
        Type::Map(inner) => prop::collection::btree_map("[a-z]{0,3}", value(*inner, depth), 1..3)
            .prop_map(|m| Value::Object(m.into_iter().collect()))
            .boxed(),
        Type::SchemaOr(SchemaOr::Bool, _) => any::<bool>().prop_map(Value::Bool).boxed(),
        Type::SchemaOr(SchemaOr::StringArray, _) => {
            prop::collection::vec("[a-z]{1,3}", 1..3).prop_map(Value::from).boxed()
        }
        Type::SchemaOr(SchemaOr::Array, _) => Just(json!([{"type": "string"}])).boxed(),
        Type::Object(_) => match ty.definition() {
            Some(definition) if depth > 0 => object(definition, depth - 1),
            _ => Just(json!({})).boxed(),
        },
    }
}

/// Whether the protobuf form has a place for a field.
fn carried(definition: &Definition, field: &Field) -> bool {
    field.tag != 0 || definition.inlines.iter().any(|i| i.definition().field(field.name).is_some())
}

/// A few fields of a definition, of those that protobuf carries.
fn object(definition: &'static Definition, depth: u32) -> BoxedStrategy<Value> {
    let fields: Vec<_> = definition.fields.iter().filter(|f| carried(definition, f)).map(|f| (f.name, f.ty)).collect();
    if fields.is_empty() {
        return Just(json!({})).boxed();
    }
    let some = prop::sample::subsequence(fields.clone(), 0..=fields.len().min(4));
    some.prop_flat_map(move |fields| {
        fields
            .into_iter()
            .map(|(name, ty)| value(ty, depth).prop_map(move |v| (name.to_owned(), v)))
            .collect::<Vec<_>>()
    })
    .prop_map(|entries| Value::Object(Map::from_iter(entries)))
    .boxed()
}

/// The envelope carries apiVersion and kind; `version.Info` is served as JSON only.
#[test]
fn what_protobuf_does_not_carry() {
    let fields = schema::definitions().iter().flat_map(|d| d.fields.iter().map(move |f| (d, f)));
    let left = fields.filter(|(d, f)| !carried(d, f) && !matches!(f.name, "apiVersion" | "kind"));
    let names: BTreeSet<_> = left.map(|(d, _)| d.name).collect();
    assert_eq!(names, BTreeSet::from(["io.k8s.apimachinery.pkg.version.Info"]));
}

#[test]
fn every_definition_goes_both_ways() {
    for definition in schema::definitions() {
        let mut runner = TestRunner::new(ProptestConfig { cases: 8, failure_persistence: None, ..Default::default() });
        let outcome = runner.run(&object(definition, 3), |object| {
            let bytes = encode_message(definition, &object).expect("encodes");
            prop_assert_eq!(Value::Object(decode_message(definition, &bytes).expect("decodes")), object.clone());
            prop_assert_eq!(schema::check(definition, &object), Ok(vec![]));
            let mut same = object.clone();
            schema::normalize(definition, &mut same);
            prop_assert_eq!(same, object);
            Ok(())
        });
        outcome.unwrap_or_else(|e| panic!("{}: {e}", definition.name));
    }
}

proptest! {
    #[test]
    fn nothing_panics(i in 0..schema::definitions().len(), bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        let _ = decode_message(&schema::definitions()[i], &bytes);
        let _ = decode(&[MAGIC.as_slice(), &bytes].concat());
    }
}
